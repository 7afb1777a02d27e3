"""`bonsai compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser, print_table, run_folder, runs_folder
from bonsaigpt.report import comparison, write_comparison

__all__ = ["run"]

_EXAMPLE = "  bonsai compare runs/gelu runs/swiglu --html compare.html"


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("compare", "A table of runs, and a page that lays their curves over each other.", _EXAMPLE)
    parser.add_argument("runs_to_compare", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--html", type=Path, default=Path("compare.html"), help="the page (default: compare.html)")
    runs_folder(parser)
    arguments = parser.parse(argv)
    runs = [RunDirectory.open(run_folder(place, arguments.runs)) for place in arguments.runs_to_compare]
    header, rows = comparison(runs)
    print_table(header, rows)
    print(write_comparison(runs, arguments.html))
    return 0
