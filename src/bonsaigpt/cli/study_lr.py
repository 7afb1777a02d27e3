"""`bonsai study lr`: the learning rate of a recipe, found by short trainings."""

from __future__ import annotations

import argparse
import math
import shlex

from bonsaigpt.cli.common import Parser, add_settings, check_run_name, print_table
from bonsaigpt.cli.sweeping import add_sweep_flags, configurer, execute, finish
from bonsaigpt.study.lr import analyse, earlier, lr_points, write_json
from bonsaigpt.study.lr_page import lr_table, write_lr
from bonsaigpt.study.plan import make_plan
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
    parser.add_argument("recipe", help="a recipe's name, a file.toml, or a run's folder")
    parser.add_argument(
        "--steps",
        type=_count,
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
    add_sweep_flags(parser)
    source = add_settings(parser)
    arguments = parser.parse(argv)
    recipe, configure = configurer(arguments, source, argv, taken=())
    base = configure({})
    steps = arguments.steps or min(_STEPS, base.train.steps)
    folder = arguments.runs / check_run_name(arguments.name or f"{recipe}-lr")
    tried = [*arguments.multiples, *earlier(folder)]
    while True:
        plan = make_plan(
            lr_points(base, tried, steps=steps),
            recipe=recipe,
            command=shlex.join(["bonsai", "study", "lr", *argv]),
            seeds=arguments.seeds,
            configure=configure,
        )
        with execute(plan, folder, arguments) as (sweep, stopped):
            study = analyse(summarise(sweep, results(sweep)), base, given=arguments.multiples, steps=steps)
            if study.more and stopped is None:
                print(f"{study.why}: going on with {' and '.join(f'x{m:g}' for m in study.more)}")
                tried += study.more
                continue
            print_table(*lr_table(study, base))
            print(study.verdict)
            for path in (write_json(study, base, sweep), *write_lr(study, base, sweep)):
                print(path)
            return finish(sweep, stopped)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no count: use 1 or more")
    return int(text)


def _multiples(text: str) -> list[float]:
    try:
        found = sorted({float(f"{float(part):.4g}") for part in text.split(",")})
    except ValueError:
        found = []
    if not all(0.0 < multiple < math.inf for multiple in found) or len(found) < 3:
        raise argparse.ArgumentTypeError(f"'{text}' is not three different positive factors or more: e.g. 0.5,1,2")
    return found
