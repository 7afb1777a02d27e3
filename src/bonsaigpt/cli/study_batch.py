"""`bonsai study batch`: pairs of batch and block size with equal tokens in a step."""

from __future__ import annotations

from rich.console import Console

from bonsaigpt.cli.common import Parser, count_from, counts, progress_bar
from bonsaigpt.cli.studying import read_study, tell
from bonsaigpt.cli.sweeping import execute, finish
from bonsaigpt.study.batch import VARIED, analyse, batch_points, own_losses, pairs, write_json
from bonsaigpt.study.batch_page import batch_table, write_batch
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
    parser.add_argument(
        "--tokens-per-step",
        type=counts,
        default=[768],
        metavar="N,N",
        help="tokens in an optimizer step; several give a map of two dimensions (default: 768)",
    )
    parser.add_argument(
        "--blocks",
        type=counts,
        default=[8, 16, 32, 64, 128],
        metavar="N,N",
        help="block sizes, in tokens; one that does not divide the step is left out (default: 8,16,32,64,128)",
    )
    parser.add_argument(
        "--budget", type=count_from(1), metavar="N", help="training tokens of each run (default: the recipe's)"
    )
    parser.add_argument(
        "--eval-block", type=count_from(1), metavar="N", help="context of all evaluations (default: the shortest block)"
    )
    parser.add_argument(
        "--target", type=float, metavar="LOSS", help="loss to count steps and seconds to (default: the median pair's)"
    )
    asked = read_study(parser, "batch", argv, taken=VARIED)
    arguments = asked.arguments
    found = pairs(arguments.tokens_per_step, arguments.blocks)
    plan = asked.plan(batch_points(asked.base, found, budget=arguments.budget, context=arguments.eval_block))
    with execute(plan, asked.folder, arguments) as (sweep, stopped):
        finished = results(sweep)
        with progress_bar(Console()) as advance:
            own = own_losses(sweep, finished, arguments.corpora, advance=advance)
        study = analyse(summarise(sweep, finished), own, sweep, target=arguments.target)
        tell(batch_table(study), study.verdict, [write_json(study, own, sweep), *write_batch(study, sweep)])
        return finish(sweep, stopped)
