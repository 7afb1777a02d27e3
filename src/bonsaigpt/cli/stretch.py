"""`bonsai stretch`: a run goes on at a longer context, as a run of its own."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from rich.console import Console

from bonsaigpt import __version__
from bonsaigpt.adapt import stretched_arrays, stretched_config
from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.cli.common import Parser, add_settings, check_run_name, count_from, run_folder, runs_folder, settings
from bonsaigpt.cli.experiment import open_data, with_overrides
from bonsaigpt.cli.train import train_run
from bonsaigpt.errors import CheckpointError
from bonsaigpt.train import start_state

__all__ = ["run", "stretch_run"]

_EXAMPLE = """  bonsai stretch runs/shakespeare-char-modern --block-size 256 --rope yarn --steps 200
  bonsai stretch shakespeare-char --block-size 128 --name longer --optim.lr 3e-4"""


def run(argv: list[str]) -> int:
    """The verb."""
    return stretch_run(argv)[1]


def stretch_run(argv: list[str]) -> tuple[RunDirectory, int]:
    """What the verb does; the new run, and the exit code of its training."""
    parser = Parser(
        "stretch",
        "Train a run on at a longer context. Its weights and its optimizer's state are kept, learned positions are "
        "interpolated, rotary ones scaled if asked; the result is a run like any other.",
        _EXAMPLE,
    )
    parser.add_argument("run", help="RUN (its last checkpoint), RUN@best or RUN@500")
    parser.add_argument(
        "--block-size", type=count_from(1), required=True, metavar="N", help="the longer context, in tokens"
    )
    parser.add_argument(
        "--rope",
        choices=["linear", "ntk", "yarn"],
        help="scale rotary positions: interpolate all, enlarge the base, or by parts (default: as the run has them)",
    )
    parser.add_argument(
        "--steps", type=count_from(1), default=100, metavar="N", help="optimizer steps at that context (default: 100)"
    )
    parser.add_argument("--name", help="name of the new run (default: the run's, and the context)")
    runs_folder(parser)
    source = add_settings(parser, "optim", "train")
    arguments = parser.parse(argv)
    overrides = settings(source, argv)
    target = _make(arguments, overrides, argv)
    places = ["--runs", str(arguments.runs), "--corpora", str(arguments.corpora)]
    return train_run([str(target), "--resume", *places])


def _make(arguments: argparse.Namespace, overrides: dict[str, object], argv: list[str]) -> Path:
    """The new run, with the checkpoint of step 0 that it goes on from."""
    parent, last = os.path.split(arguments.run)
    last, _, which = last.partition("@")
    folder = run_folder(os.path.join(parent, last), arguments.runs)
    old = RunDirectory.open(folder)
    name = arguments.name or f"{folder.name}-{arguments.block_size}"
    target = arguments.runs / check_run_name(name)
    RunDirectory.refuse_existing(target)
    before = old.config
    config = stretched_config(before, arguments.block_size, rope=arguments.rope, steps=arguments.steps)
    config = with_overrides(config, overrides)
    saved = old.load(which or "last")
    console = Console()
    source = open_data(config, arguments.corpora, console)
    tokenizer = old.tokenizer
    if tokenizer.to_json() != source.tokenizer.to_json():
        raise CheckpointError(
            f"{folder} was trained with another tokenizer than its data has now: restore its text or its corpus"
        )
    start = Checkpoint(
        model=stretched_arrays(saved.model, before.model, config.model),
        optimizer=stretched_arrays(saved.optimizer, before.model, config.model),
        state=start_state(source),
    )
    about = {
        "bonsaigpt": __version__,
        "command": shlex.join(["bonsai", "stretch", *argv]),
        "stretched": f"{folder}@{saved.state['step']}, from {before.model.block_size} tokens",
        "data": source.fingerprint,
    }
    RunDirectory.create(target, config, tokenizer, about, start=start)
    rows, were = config.train.batch_size, before.train.batch_size
    console.print(
        f"{target}: {folder}@{saved.state['step']} at {config.model.block_size} tokens instead of "
        f"{before.model.block_size}, {rows} rows a step instead of {were}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return target
