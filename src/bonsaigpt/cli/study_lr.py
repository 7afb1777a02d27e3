"""`bonsai study lr`: the learning rate of a recipe, found by short trainings."""

from __future__ import annotations

import argparse
import math

from bonsaigpt.cli.common import Parser, count_from
from bonsaigpt.cli.studying import read_study, tell
from bonsaigpt.cli.sweeping import execute, finish
from bonsaigpt.study.lr import analyse, earlier, lr_points, write_json
from bonsaigpt.study.lr_page import lr_table, write_lr
from bonsaigpt.study.results import results, summarise

__all__ = ["run"]

_EXAMPLE = """  bonsai study lr shakespeare-char --seeds 3
  bonsai study lr shakespeare-char-fast --steps 100 --multiples 0.5,1,2 --seeds 3"""

_STEPS = 300


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "study lr",
        "Train a recipe for a few steps at several multiples of its learning rate, with its own schedule shrunk to "
        "that length, and suggest the rate at the bottom of the loss: the flags to type. All rates (optim.lr, and "
        "optim.matrices.lr of Muon) move together. Multiples are added beyond an edge where the best is, and halfway "
        "to its neighbours where these are far. Typed again after a stop, the same command goes on where it was.",
        _EXAMPLE,
    )
    parser.add_argument(
        "--steps",
        type=count_from(1),
        metavar="N",
        help=f"optimizer steps of each training (default: {_STEPS}, or the recipe's own if they are fewer)",
    )
    parser.add_argument(
        "--multiples",
        type=_multiples,
        default=[0.25, 0.5, 1.0, 2.0, 4.0],
        metavar="X,X,X",
        help="of the recipe's learning rates, at least three (default: 0.25,0.5,1,2,4)",
    )
    asked = read_study(parser, "lr", argv)
    base, multiples = asked.base, asked.arguments.multiples
    steps = asked.arguments.steps or min(_STEPS, base.train.steps)
    tried = [*multiples, *earlier(asked.folder)]
    while True:
        plan = asked.plan(lr_points(base, tried, steps=steps))
        with execute(plan, asked.folder, asked.arguments) as (sweep, stopped):
            study = analyse(summarise(sweep, results(sweep)), base, given=multiples, steps=steps)
            if study.more and stopped is None:
                print(f"{study.why}: going on with {' and '.join(f'x{m:g}' for m in study.more)}")
                tried += study.more
                continue
            tell(lr_table(study, base), study.verdict, [write_json(study, base, sweep), *write_lr(study, base, sweep)])
            return finish(sweep, stopped)


def _multiples(text: str) -> list[float]:
    try:
        found = sorted({float(f"{float(part):.4g}") for part in text.split(",")})
    except ValueError:
        found = []
    if not all(0.0 < multiple < math.inf for multiple in found) or len(found) < 3:
        raise argparse.ArgumentTypeError(f"'{text}' is not three different positive factors or more: e.g. 0.5,1,2")
    return found
