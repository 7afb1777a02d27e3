"""`bonsai train`: from a recipe, from a run's configuration, or on with a run."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bonsaigpt import __version__, recipes
from bonsaigpt.checkpoint import Checkpoint, RunDirectory, check_weights
from bonsaigpt.cli.common import Parser, add_settings, check_run_name, open_model, runs_folder, settings
from bonsaigpt.cli.experiment import as_run, make_engine, open_data, with_overrides, with_vocabulary
from bonsaigpt.config import RunConfig, dump_toml
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.errors import BonsaiError, CheckpointError, ConfigError
from bonsaigpt.files import write_text
from bonsaigpt.train import start_state, train
from bonsaigpt.train.callbacks.console import ConsoleProgress
from bonsaigpt.train.callbacks.jsonl import JsonLines
from bonsaigpt.train.callbacks.samples import Samples
from bonsaigpt.train.callbacks.tensorboard import TensorBoard
from bonsaigpt.train.callbacks.wandb import WandB
from bonsaigpt.train.events import Listener
from bonsaigpt.train.resume import changes, check_data, check_same_function

__all__ = ["run"]

_EXAMPLE = """  bonsai train shakespeare-char --train.steps 500 --model.n_layer 4 --model.mlp.kind swiglu
  bonsai train runs/shakespeare-char --resume --train.steps 4000
  bonsai train shakespeare-char --name warm --init runs/shakespeare-char"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("train", "Train a GPT from a recipe, a TOML file or a run's own configuration.", _EXAMPLE)
    parser.add_argument("recipe", help="a recipe's name, a file.toml, or a run's folder")
    parser.add_argument("--name", help="name of the run (default: the recipe's)")
    parser.add_argument("--resume", action="store_true", help="go on with this run, exactly where it stopped")
    parser.add_argument("--init", metavar="RUN", help="start from the weights of another run (RUN, RUN@last, RUN@500)")
    runs_folder(parser)
    source = add_settings(parser)
    arguments = parser.parse(argv)
    overrides = settings(source, argv)
    console = Console(stderr=False)

    folder = as_run(arguments.recipe, arguments.runs, resume=arguments.resume)
    if arguments.resume:
        if folder is None:
            raise ConfigError(f"--resume needs the folder of a run, and {arguments.recipe} is none.")
        if arguments.init or arguments.name:
            raise ConfigError("--resume goes on with a run as it is: leave out --init and --name.")
        run_directory, code = _resume(folder, overrides, arguments, argv, console)
    else:
        run_directory, code = _start(folder, overrides, arguments, argv, console)

    _write_report(run_directory, console)
    if code == 0:
        console.print(f'next: bonsai sample {run_directory.path} --prompt "..."', highlight=False, markup=False)
    else:
        console.print(f"go on with: bonsai train {run_directory.path} --resume", highlight=False, markup=False)
    return code


def _start(
    folder: Path | None,
    overrides: dict[str, Any],
    arguments: argparse.Namespace,
    argv: list[str],
    console: Console,
) -> tuple[RunDirectory, int]:
    if folder is not None:
        config = with_overrides(RunDirectory.open(folder).config, overrides)
        name = folder.name
    else:
        config = recipes.load(arguments.recipe, overrides)
        name = Path(arguments.recipe).stem
    if arguments.name is not None:
        name = arguments.name
    target = arguments.runs / check_run_name(name)
    RunDirectory.refuse_existing(target)  # now: nothing is worse than a refusal after a long wait
    engine = make_engine(config)
    opened = open_model(arguments.init, runs=arguments.runs) if arguments.init else None
    source = open_data(config, arguments.corpora, console)
    config = with_vocabulary(config, source)
    if opened is not None:
        check_weights(opened.weights, config.model, origin=opened.label)
        if opened.tokenizer.to_json() != source.tokenizer.to_json():
            raise CheckpointError(
                f"{opened.label} was trained with another tokenizer than this data has, so its ids mean other text: "
                "train on the same data, or without --init"
            )
        check_same_function(opened.config, config.model, origin=opened.label)
    config, why = engine.resolve(config, source.batch_at(config.train.steps - 1))
    environment = _environment(engine.describe() | {"decisions": why}, source, argv)
    listeners = _listeners(config, console)
    start = Checkpoint(model=opened.weights, optimizer={}, state=start_state(source)) if opened is not None else None
    run_directory = RunDirectory.create(target, config, source.tokenizer, environment, start=start)
    outcome = train(
        config,
        engine=engine,
        source=source,
        run=run_directory,
        environment=environment,
        listeners=listeners,
        resume=start,
    )
    return run_directory, _exit_code(outcome.reason)


def _resume(
    folder: Path, overrides: dict[str, Any], arguments: argparse.Namespace, argv: list[str], console: Console
) -> tuple[RunDirectory, int]:
    run_directory = RunDirectory.open(folder)
    run_directory.tidy()
    old = run_directory.config
    config = with_overrides(old, overrides)
    for change in changes(old, config):
        console.print(f"[yellow]changed[/] {escape(change)}", highlight=False)
    tokenizer = run_directory.tokenizer
    checkpoint: Checkpoint | None = None
    if run_directory.steps():  # killed before the first checkpoint, a run resumes from its beginning
        checkpoint = run_directory.load("last")
        if checkpoint.state["step"] >= config.train.steps:
            raise ConfigError(
                f"{folder} has done all of its {checkpoint.state['step']} steps: "
                f"give more, e.g. --train.steps {2 * checkpoint.state['step']}"
            )
    engine = make_engine(config)
    source = open_data(config, arguments.corpora, console)
    trained_on = checkpoint.state if checkpoint is not None else run_directory.environment
    check_data(trained_on.get("data", source.fingerprint), tokenizer, source)
    environment = _environment(engine.describe(), source, argv)
    listeners = _listeners(config, console)  # it may refuse; only then is anything written
    if config != old:
        write_text(folder / "config.toml", dump_toml(config))
    run_directory.note_session(environment)
    outcome = train(
        config,
        engine=engine,
        source=source,
        run=run_directory,
        environment=environment,
        listeners=listeners,
        resume=checkpoint,
    )
    return run_directory, _exit_code(outcome.reason)


def _listeners(config: RunConfig, console: Console) -> list[Listener]:
    listeners: list[Listener] = [JsonLines(), ConsoleProgress(console)]
    if config.train.tensorboard:
        listeners.append(TensorBoard())
    if config.train.wandb:
        listeners.append(WandB(config.train.wandb))
    if config.train.sample_tokens:
        listeners.append(Samples(config.train.sample_prompt, config.train.sample_tokens, console))
    return listeners


def _environment(engine: dict[str, Any], source: BatchSource, argv: list[str]) -> dict[str, Any]:
    return {
        "bonsaigpt": __version__,
        **engine,
        "data": source.fingerprint,
        "tokenizer": f"{source.tokenizer.kind}, {source.tokenizer.vocab_size} tokens",
        "git": _git_state(),
        "command": shlex.join(["bonsai", "train", *argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_state() -> str | None:
    """Commit of the folder we run in, with a mark if files were changed; None outside a repository."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


def _exit_code(reason: str) -> int:
    return {"done": 0, "patience": 0, "SIGINT": 130, "SIGTERM": 143}[reason]


def _write_report(run_directory: RunDirectory, console: Console) -> None:
    """The weights are safe by now: a report that fails is a warning, not a failure."""
    from bonsaigpt.report import write_report

    try:
        path = write_report(run_directory)
    except (BonsaiError, OSError, ValueError, ImportError) as error:
        print(f"bonsai: no report ({error}); `bonsai report {run_directory.path}` tries again", file=sys.stderr)
    else:
        console.print(f"report: {path}", highlight=False, markup=False)
