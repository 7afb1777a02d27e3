"""`bonsai stretch`: a run goes on at a longer context, as a run of its own."""

from __future__ import annotations

from rich.console import Console

from bonsaigpt.adapt import stretched_arrays, stretched_config
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser, add_settings, count_from, runs_folder, settings
from bonsaigpt.cli.going_on import new_run
from bonsaigpt.cli.train import train_made

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
    made = new_run(
        arguments,
        ["stretch", *argv],
        overrides,
        verb="stretched",
        suffix=str(arguments.block_size),
        config_of=lambda old: stretched_config(old, arguments.block_size, rope=arguments.rope, steps=arguments.steps),
        arrays_of=stretched_arrays,
    )
    rows, were = made.config.train.batch_size, made.before.train.batch_size
    Console().print(
        f"{made.path}: {made.origin} at {made.config.model.block_size} tokens instead of "
        f"{made.before.model.block_size}, {rows} rows a step instead of {were}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return train_made(made.path, arguments)
