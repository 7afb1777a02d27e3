"""`bonsai adapter`: adapters merged into their weights, or kept as small files beside the base."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from bonsaigpt import __version__
from bonsaigpt.adapt.adapters import Tuned, merged_model, read_adapter, write_adapter
from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.cli.common import Opened, Parser, check_run_name, open_model, runs_folder
from bonsaigpt.config import ExamplesData, FileTokenizerConfig, PairsData, derive
from bonsaigpt.errors import CheckpointError, ConfigError, OutputError
from bonsaigpt.spec import parameter_count
from bonsaigpt.train import state_before

__all__ = ["run"]

_EXAMPLE = """  bonsai adapter merge runs/intents --name intents-dense
  bonsai adapter save runs/intents --base runs/wiki -o intents.safetensors
  bonsai adapter apply runs/wiki intents.safetensors --name intents-again"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "adapter",
        "What becomes of adapters (bonsai finetune --adapter): merge makes a run of dense weights, the same function; "
        "save writes what a run has beyond its base into a small file; apply makes a run of a base and such a file.",
        _EXAMPLE,
    )
    parser.add_argument("what", choices=["merge", "save", "apply"], help="what to do")
    parser.add_argument("model", help="RUN, RUN@last or RUN@500; for apply the base, a run or a folder")
    parser.add_argument("file", nargs="?", type=Path, help="for apply: what save wrote")
    parser.add_argument("--base", metavar="RUN", help="for save: the model that was tuned (default: as the run says)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="for save (default: RUN.safetensors)")
    parser.add_argument("--name", help="for merge and apply: name of the new run (default: the run's, and -merged)")
    runs_folder(parser)
    arguments = parser.parse(argv)
    if (arguments.what == "apply") != (arguments.file is not None):
        raise ConfigError("apply takes a base and a file, merge and save a run alone.")
    opened = open_model(arguments.model, runs=arguments.runs)
    if arguments.what == "apply":
        tuned, suffix = read_adapter(arguments.file, opened.weights), arguments.file.stem
    else:
        if opened.run is None:
            raise CheckpointError(f"{opened.label} is no run: adapters are of runs, made by bonsai finetune --adapter.")
        tuned, suffix = _tuned(opened, opened.run), "merged"
        if arguments.what == "save":
            _save(arguments, tuned, opened.run)
            return 0
        model, weights = merged_model(opened.config, opened.weights)
        thawed = {"lr_scale": {}}  # what goes on from here trains all of it
        config = derive(tuned.config, model=model.model_dump(exclude_none=True), optim=thawed)
        tuned = replace(tuned, config=config, weights=weights)
    name = check_run_name(arguments.name or f"{Path(opened.label.partition('@')[0]).name}-{suffix}")
    made = _write(arguments.runs / name, tuned, opened.label, argv)
    print(f"{made.path}: {parameter_count(tuned.config.model):,} parameters")
    return 0


def _tuned(opened: Opened, run: RunDirectory) -> Tuned:
    return Tuned(
        config=run.config,
        weights=opened.weights,
        tokenizer=opened.tokenizer,
        data=read_state(run.find(str(opened.step)))["data"],
    )


def _save(arguments: argparse.Namespace, tuned: Tuned, run: RunDirectory) -> None:
    base_label = arguments.base or run.environment.get("finetuned")
    if base_label is None:
        raise ConfigError(f"{run.path} does not say what it was tuned from: give it with --base RUN.")
    base = open_model(base_label, runs=arguments.runs)
    path = arguments.output or Path(f"{run.path.name}.safetensors")
    if path.exists():
        raise OutputError(f"{path} exists already: choose another name with -o")
    written = write_adapter(path, tuned, base.weights, label=base.label)
    whole = 4 * parameter_count(tuned.config.model)
    print(f"{path}: {written:,} bytes, {written / whole:.1%} of the whole model, beside {base.label}")


def _write(target: Path, tuned: Tuned, label: str, argv: list[str]) -> RunDirectory:
    config = tuned.config
    if isinstance(config.data, ExamplesData | PairsData):  # the run brings its own tokenizer
        own = FileTokenizerConfig(path=target / "tokenizer.json").model_dump(mode="json")
        config = derive(config, data={"tokenizer": own})
    about = {
        "bonsaigpt": __version__,
        "command": shlex.join(["bonsai", "adapter", *argv]),
        "adapter": label,
        "data": tuned.data,
    }
    start = Checkpoint(model=tuned.weights, optimizer={}, state=state_before(tuned.data))
    return RunDirectory.create(target, config, tuned.tokenizer, about, start=start)
