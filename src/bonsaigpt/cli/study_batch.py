"""`bonsai study batch`: pairs of batch and block size with equal tokens in a step."""

from __future__ import annotations

import argparse
import shlex

from rich.console import Console

from bonsaigpt.cli.common import Parser, add_settings, check_run_name, print_table, progress_bar
from bonsaigpt.cli.sweeping import add_sweep_flags, configurer, execute, finish
from bonsaigpt.study.batch import VARIED, analyse, batch_points, own_losses, pairs, write_json
from bonsaigpt.study.batch_page import batch_table, write_batch
from bonsaigpt.study.plan import make_plan
from bonsaigpt.study.results import results, summarise

__all__ = ["run"]

_EXAMPLE = """  bonsai study batch shakespeare-char --seeds 3
  bonsai study batch shakespeare-char --tokens-per-step 384,768,1536 --blocks 16,32,64 --train.steps 500"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "study batch",
        "Train a recipe with the same tokens in a step cut as many short or as few long sequences, for the same number "
        "of tokens in all, and compare loss, steps and seconds to a target loss, training time and memory. All are "
        "scored with the same context. Typed again after a stop, the same command goes on where it was.",
        _EXAMPLE,
    )
    parser.add_argument("recipe", help="a recipe's name, a file.toml, or a run's folder")
    parser.add_argument(
        "--tokens-per-step",
        type=_counts,
        default=[768],
        metavar="N,N",
        help="tokens in an optimizer step; several give a map of two dimensions (default: 768)",
    )
    parser.add_argument(
        "--blocks",
        type=_counts,
        default=[8, 16, 32, 64, 128],
        metavar="N,N",
        help="block sizes, in tokens; one that does not divide the step is left out (default: 8,16,32,64,128)",
    )
    parser.add_argument(
        "--budget", type=_one_count, metavar="N", help="training tokens of each run (default: the recipe's)"
    )
    parser.add_argument(
        "--eval-block", type=_one_count, metavar="N", help="context of all evaluations (default: the shortest block)"
    )
    parser.add_argument(
        "--target", type=float, metavar="LOSS", help="loss to count steps and seconds to (default: the median pair's)"
    )
    add_sweep_flags(parser)
    source = add_settings(parser)
    arguments = parser.parse(argv)
    recipe, configure = configurer(arguments, source, argv, taken=VARIED)
    found = pairs(arguments.tokens_per_step, arguments.blocks)
    points = batch_points(configure({}), found, budget=arguments.budget, context=arguments.eval_block)
    folder = arguments.runs / check_run_name(arguments.name or f"{recipe}-batch")
    command = shlex.join(["bonsai", "study", "batch", *argv])
    plan = make_plan(points, recipe=recipe, command=command, seeds=arguments.seeds, configure=configure)
    with execute(plan, folder, arguments) as (sweep, stopped):
        finished = results(sweep)
        with progress_bar(Console()) as advance:
            own = own_losses(sweep, finished, arguments.corpora, advance=advance)
        study = analyse(summarise(sweep, finished), own, sweep, target=arguments.target)
        print_table(*batch_table(study))
        print(study.verdict)
        for path in (write_json(study, own, sweep), *write_batch(study, sweep)):
            print(path)
        return finish(sweep, stopped)


def _counts(text: str) -> list[int]:
    return [_one_count(part) for part in text.split(",")]


def _one_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no count: use whole numbers from 1, separated by commas")
    return int(text)
