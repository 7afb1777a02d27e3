"""`bonsai sweep`: a grid of settings, several seeds each, and one table of what they came to."""

from __future__ import annotations

import shlex

from bonsaigpt.cli.common import Parser, add_recipe, add_settings, check_run_name, print_table
from bonsaigpt.cli.sweeping import add_sweep_flags, configurer, execute, finish
from bonsaigpt.errors import ConfigError
from bonsaigpt.study.page import write_sweep
from bonsaigpt.study.plan import grid, make_plan, parse_axis
from bonsaigpt.study.results import Summary, results, summarise, table, verdict, write_csv

__all__ = ["run", "sweep_runs"]

_EXAMPLE = """  bonsai sweep shakespeare-char --grid optim.lr=1e-3,2e-3 --grid model.mlp.kind=gelu,relu2 --seeds 3
  bonsai sweep sort --seeds 5 --train.steps 600 --jobs 2
  bonsai sweep gpt2 --grid optim.lr=3e-4,6e-4 --executor slurm --submitit timeout_min=600 --submitit gpus_per_node=1"""


def run(argv: list[str]) -> int:
    """The verb."""
    return sweep_runs(argv)[1]


def sweep_runs(argv: list[str]) -> tuple[list[Summary], int]:
    """What the verb does; the points of the grid, and the exit code: 130 or 143 if it was stopped."""
    parser = Parser(
        "sweep",
        "Train a recipe at every point of a grid, with several seeds each, and hold the points against each other: "
        "mean validation loss in nats with its 95 % interval, and the difference to the first point, paired by seed. "
        "Typed again after a stop or a crash, the same command goes on where it was.",
        _EXAMPLE,
    )
    add_recipe(parser)
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="SETTING=V,V",
        help="values of one setting; several --grid make every combination, and the first point is the baseline",
    )
    add_sweep_flags(parser)
    source = add_settings(parser)
    arguments = parser.parse(argv)
    points = grid([parse_axis(text) for text in arguments.grid])
    if len(points) == 1 and arguments.seeds == 1:
        raise ConfigError("there is nothing to sweep: give --grid SETTING=VALUE,VALUE, or more than one of --seeds.")
    recipe, configure = configurer(arguments, source, argv, taken=points[0].settings)
    folder = arguments.runs / check_run_name(arguments.name or f"{recipe}-sweep")
    plan = make_plan(
        points,
        recipe=recipe,
        command=shlex.join(["bonsai", "sweep", *argv]),
        seeds=arguments.seeds,
        configure=configure,
    )
    with execute(plan, folder, arguments) as (sweep, stopped):
        summaries = summarise(sweep, results(sweep))
        print_table(*table(sweep, summaries))
        print(verdict(summaries))
        print(write_csv(sweep, summaries, folder / "sweep.csv"))
        print(write_sweep(sweep, summaries))
        return summaries, finish(sweep, stopped)
