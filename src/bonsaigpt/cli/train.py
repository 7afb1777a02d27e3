"""`bonsai train`: from a recipe, from a run's configuration, or on with a run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bonsaigpt import recipes
from bonsaigpt.adapt import fitted_arrays
from bonsaigpt.checkpoint import Checkpoint, RunDirectory, check_weights
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.cli.common import (
    Parser,
    add_recipe,
    add_settings,
    check_run_name,
    open_model,
    progress_bar,
    runs_folder,
    settings,
)
from bonsaigpt.cli.dryrun import show_forecast
from bonsaigpt.cli.experiment import (
    as_run,
    environment_of,
    make_engine,
    open_data,
    whisper,
    with_model_of,
    with_overrides,
    with_vocabulary,
)
from bonsaigpt.config import RunConfig, dump_toml, validate
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.errors import BonsaiError, CheckpointError, ConfigError
from bonsaigpt.files import write_text
from bonsaigpt.measure.forecast import forecast
from bonsaigpt.processes import Process
from bonsaigpt.train import last_checkpoint, start_state, train
from bonsaigpt.train.callbacks.console import ConsoleProgress
from bonsaigpt.train.callbacks.health import HealthLines
from bonsaigpt.train.callbacks.jsonl import JsonLines
from bonsaigpt.train.callbacks.samples import Samples
from bonsaigpt.train.callbacks.tensorboard import TensorBoard
from bonsaigpt.train.callbacks.wandb import WandB
from bonsaigpt.train.events import Listener
from bonsaigpt.train.resume import changes, check_data, check_policy, check_same_function, check_teacher

__all__ = ["run", "train_made", "train_run"]

_EXAMPLE = """  bonsai train shakespeare-char --train.steps 500 --model.n_layer 4 --model.mlp.kind swiglu
  bonsai train runs/shakespeare-char --resume --train.steps 4000
  bonsai train shakespeare-char --name warm --init runs/shakespeare-char
  bonsai train my-text --data.path my-texts --init models/gpt2 --optim.lr 5e-5
  bonsai train shakespeare-char --dry-run --model.n_layer 12"""


def run(argv: list[str]) -> int:
    """The verb."""
    return train_run(argv)[1]


def train_made(made: Path, arguments: argparse.Namespace) -> tuple[RunDirectory, int]:
    """Train a run that another verb has just made, with the folders of that verb's flags; as ``train_run``."""
    places = ["--runs", str(arguments.runs), "--corpora", str(arguments.corpora)]
    return train_run([str(made), "--resume", *places])


def train_run(argv: list[str]) -> tuple[RunDirectory, int]:
    """What the verb does; the run, and the exit code: 0, or 130 or 143 if Ctrl-C or SIGTERM ended it early."""
    parser = Parser("train", "Train a GPT from a recipe, a TOML file or a run's own configuration.", _EXAMPLE)
    add_recipe(parser)
    parser.add_argument("--name", help="name of the run (default: the recipe's)")
    parser.add_argument("--resume", action="store_true", help="go on with this run, exactly where it stopped")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="go on with the run if there is one of this name, else start it: for jobs that are started again by "
        "themselves, as torchrun's are after a failure",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="tell what the run would be, and train nothing: size, memory, work, time, disk, final loss",
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="start from the weights of another run (RUN, RUN@last, RUN@500), or of a folder in Hugging Face's format, "
        "which brings model and tokenizer",
    )
    runs_folder(parser)
    source = add_settings(parser)
    arguments = parser.parse(argv)
    overrides = settings(source, argv)
    process = Process.here()
    console = Console(stderr=False, quiet=not process.is_main)

    session = _Session(arguments, overrides, argv, console, process)
    folder = as_run(arguments.recipe, arguments.runs, resume=arguments.resume)
    if arguments.resume:
        if folder is None:
            raise ConfigError(f"--resume needs the folder of a run, and {arguments.recipe} is none.")
        if arguments.init or arguments.name or arguments.auto_resume:
            raise ConfigError("--resume goes on with a run as it is: leave out --init, --name and --auto-resume.")
        run_directory, code = session.resume(folder)
    else:
        run_directory, code = session.start(folder)

    if arguments.dry_run:
        return run_directory, code
    if process.is_main:
        _write_report(run_directory, console)
    if code == 0:
        console.print(f'next: bonsai sample {run_directory.path} --prompt "..."', highlight=False, markup=False)
    else:
        console.print(f"go on with: bonsai train {run_directory.path} --resume", highlight=False, markup=False)
    return run_directory, code


@dataclass(frozen=True)
class _Decisions:
    """Of the engine, on how a run is computed; none where a run goes on as it was."""

    why: dict[str, str] = field(default_factory=dict)
    """By the names of the settings."""
    seconds: float = 0.0
    """That they took."""


@dataclass(frozen=True)
class _Session:
    """One call of the verb, in each of the processes that train together; the main one prints and writes."""

    arguments: argparse.Namespace
    overrides: dict[str, Any]
    argv: list[str]
    console: Console
    process: Process

    def start(self, folder: Path | None) -> tuple[RunDirectory, int]:
        """A new run; with --auto-resume, or where torchrun has started us anew, on with it if it is there."""
        arguments = self.arguments
        if folder is not None:
            config = with_overrides(RunDirectory.open(folder).config, self.overrides)
            name = folder.name
        else:
            config = recipes.load(arguments.recipe, self.overrides)
            name = Path(arguments.recipe).stem
        if arguments.name is not None:
            name = arguments.name
        target = arguments.runs / check_run_name(name)
        # The run is made after all processes have met, and this line comes before: all of them see the same.
        if (arguments.auto_resume or self.process.restarts > 0) and target.exists():
            return self.resume(target, finished_is_fine=True)
        if not arguments.dry_run:
            RunDirectory.refuse_existing(target)  # now: nothing is worse than a refusal after a long wait
        opened = open_model(arguments.init, runs=arguments.runs) if arguments.init else None
        if opened is not None and opened.run is None:
            config = with_model_of(config, opened, self.overrides)
            model = f"model and tokenizer are those of {opened.label}"
            if config.model.block_size != opened.config.block_size:
                model += f", at a context of {config.model.block_size} tokens instead of {opened.config.block_size}"
            whisper(self.console)(model)
        engine = self._engine(config, "a new run")
        source = self._open_data(config, engine)
        config = with_vocabulary(config, source)
        check_teacher(config, source)
        check_policy(config)
        begin: Checkpoint | None = None
        if opened is not None:
            weights = fitted_arrays(opened.weights, opened.config, config.model)
            check_weights(weights, config.model, origin=opened.label)
            if opened.tokenizer.to_json() != source.tokenizer.to_json():
                raise CheckpointError(
                    f"{opened.label} was trained with another tokenizer than this data has, so its ids mean other "
                    "text: train on the same data, or without --init"
                )
            check_same_function(opened.config, config.model, origin=opened.label)
            begin = Checkpoint(model=weights, optimizer={}, state=start_state(source))
        config, decisions = self._resolve(config, engine, source)
        if arguments.dry_run:
            return self._foresee(config, decisions, engine, source, RunDirectory(target), fresh=opened is None)

        def create(environment: dict[str, Any]) -> None:
            record = environment | {"decisions": decisions.why}
            RunDirectory.create(target, config, source.tokenizer, record, start=begin)

        return self._train(config, engine, source, RunDirectory(target), create)

    def resume(self, folder: Path, *, finished_is_fine: bool = False) -> tuple[RunDirectory, int]:
        """On with a run."""
        run_directory = RunDirectory.open(folder)
        old = run_directory.config
        config = with_overrides(old, self.overrides)
        for change in changes(old, config):
            self.console.print(f"[yellow]changed[/] {escape(change)}", highlight=False)
        tokenizer = run_directory.tokenizer
        engine = self._engine(config, "a resumed run")
        if not self.arguments.dry_run:
            engine.world.on_main(run_directory.tidy)
        saved = last_checkpoint(engine, run_directory)  # killed before the first, a run resumes from its beginning
        state = read_state(saved) if saved is not None else None
        if state is not None and state["step"] >= config.train.steps:
            if finished_is_fine:
                self.console.print(f"{folder} has done all of its {state['step']} steps", highlight=False)
                return run_directory, 0
            raise ConfigError(
                f"{folder} has done all of its {state['step']} steps: give more, e.g. --train.steps {2 * state['step']}"
            )
        source = self._open_data(config, engine)
        trained_on = state if state is not None else run_directory.environment
        check_data(trained_on.get("data", source.fingerprint), tokenizer, source)
        check_teacher(config, source)
        check_policy(config)
        begin = state["step"] if state is not None else 0
        decisions = _Decisions()
        if config.left_open:
            config, decisions = self._resolve(config, engine, source, begin=begin)
        if self.arguments.dry_run:
            return self._foresee(config, decisions, engine, source, run_directory, begin=begin)

        def go_on(environment: dict[str, Any]) -> None:
            if config != old:
                write_text(folder / "config.toml", dump_toml(config))
            run_directory.note_session(environment | {"decisions": decisions.why})

        return self._train(config, engine, source, run_directory, go_on, saved)

    def _engine(self, config: RunConfig, purpose: str) -> Engine:
        """The engine, which has met the other processes and found them of one mind."""
        engine = make_engine(config, self.process)
        self._same(engine, [purpose, dump_toml(config)])
        return engine

    def _open_data(self, config: RunConfig, engine: Engine) -> BatchSource:
        corpora = self.arguments.corpora
        source = engine.world.main_first(lambda: open_data(config, corpora, self.console))
        self._same(engine, [source.fingerprint])
        return source

    def _resolve(
        self, config: RunConfig, engine: Engine, source: BatchSource, *, begin: int = 0
    ) -> tuple[RunConfig, _Decisions]:
        """What the engine decides for the run, by the main process' measurements."""
        say = whisper(self.console)

        def resolve() -> list[Any]:
            began = time.perf_counter()
            batch = source.batch_at(config.train.steps - 1)
            with progress_bar(self.console) as advance:
                advance("deciding how to compute", 0, 0)
                resolved, why = engine.resolve(config, batch, begin=begin, say=say)
            return [resolved.model_dump(mode="json", exclude_none=True), why, time.perf_counter() - began]

        resolved, why, seconds = engine.world.on_main(resolve)
        if not self.arguments.dry_run:  # which has a table of them
            for name, reason in why.items():
                if not reason.endswith("as asked"):
                    say(f"{name}: {reason}")
        return validate(resolved, origin="the engine's decisions"), _Decisions(why, seconds)

    def _foresee(
        self,
        config: RunConfig,
        decisions: _Decisions,
        engine: Engine,
        source: BatchSource,
        run_directory: RunDirectory,
        **state: Any,
    ) -> tuple[RunDirectory, int]:
        """Print what the run would be from its state on (``begin`` and ``fresh`` of ``forecast``)."""

        def show() -> None:
            with progress_bar(self.console) as advance:
                runs = run_directory.path.parent
                took = decisions.seconds
                found = forecast(
                    config, engine=engine, source=source, runs=runs, deciding=took, advance=advance, **state
                )
            show_forecast(found, why=decisions.why, environment=engine.describe(), console=self.console)

        engine.world.on_main(show)
        engine.close()
        return run_directory, 0

    def _same(self, engine: Engine, words: list[str]) -> None:
        if engine.world.on_main(lambda: words) != words:
            raise CheckpointError(
                "this process finds another run or other data than the first process: runs and corpora must lie on a "
                "file system that all machines share (--runs, --corpora)"
            )

    def _train(
        self,
        config: RunConfig,
        engine: Engine,
        source: BatchSource,
        run_directory: RunDirectory,
        write: Callable[[dict[str, Any]], None],
        saved: Path | None = None,
    ) -> tuple[RunDirectory, int]:
        """``write`` the environment into the run, and train from ``saved``, or from what the run was born with."""
        environment: dict[str, Any] = {}
        listeners: list[Listener] = []

        def begin() -> None:
            environment.update(environment_of(engine, source, "train", self.argv))
            listeners.extend(_listeners(config, self.console))  # it may refuse; only then is anything written
            write(environment)

        engine.world.on_main(begin)
        with engine.world.together():
            outcome = train(
                config,
                engine=engine,
                source=source,
                run=run_directory,
                environment=environment,
                listeners=listeners,
                resume=saved or last_checkpoint(engine, run_directory),
            )
        engine.close()
        return run_directory, _exit_code(outcome.reason)


def _listeners(config: RunConfig, console: Console) -> list[Listener]:
    listeners: list[Listener] = [JsonLines(), ConsoleProgress(console)]
    if config.train.health.interval:
        listeners.append(HealthLines(console))
    if config.train.tensorboard:
        listeners.append(TensorBoard())
    if config.train.wandb:
        listeners.append(WandB(config.train.wandb))
    if config.train.sample_tokens:
        listeners.append(Samples(config.train.sample_prompt, config.train.sample_tokens, console))
    return listeners


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
