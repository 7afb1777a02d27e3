"""`bonsai compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser, run_folder, runs_folder
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
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, name in enumerate(header):
        table.add_column(escape(name), justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
    print(write_comparison(runs, arguments.html))
    return 0
