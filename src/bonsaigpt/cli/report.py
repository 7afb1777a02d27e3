"""`bonsai report`: a run's page, written again."""

from __future__ import annotations

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser, run_folder, runs_folder
from bonsaigpt.report import write_report

__all__ = ["run"]


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("report", "Write RUN/report.html again from what the run holds.", "  bonsai report runs/stdlib")
    parser.add_argument("run", help="a run's folder")
    runs_folder(parser)
    arguments = parser.parse(argv)
    print(write_report(RunDirectory.open(run_folder(arguments.run, arguments.runs))))
    return 0
