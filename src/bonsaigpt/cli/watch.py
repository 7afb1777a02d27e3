"""`bonsai watch`: runs in the browser while they train."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from bonsaigpt.cli.common import Parser, count_from, home, tell
from bonsaigpt.errors import CheckpointError, DeviceError

__all__ = ["run"]

_EXAMPLE = """  bonsai watch
  bonsai watch runs/my-text-sweep --port 8090
  ssh -L 8090:localhost:8090 machine bonsai watch runs --port 8090   # the runs of another machine, here"""

_HOST = "127.0.0.1"


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "watch",
        "Serve a page that shows runs while they train: curves as they grow, several runs over each other, samples, "
        "health, and the points of studies with their commands. Runs that begin later appear by themselves. The runs "
        "are only read, and the page is for this machine alone.",
        _EXAMPLE,
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=home("runs"), help="of runs, or a run (default: $BONSAI_RUNS or ./runs)"
    )
    parser.add_argument("--port", type=count_from(0), default=8090, help="port; 0 takes a free one (default: 8090)")
    arguments = parser.parse(argv)
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise DeviceError("bonsai watch needs starlette and uvicorn: pip install 'bonsaigpt[serve]'")
    from bonsaigpt.serve import Limits
    from bonsaigpt.serve.server import LOOPBACK, bind, make_server
    from bonsaigpt.watch import make_app

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}: give the folder of your runs")
    with bind(_HOST, arguments.port) as listening:
        app = make_app(folder, hosts=sorted(LOOPBACK), stopping=lambda: server.should_exit)
        where = f"http://{_HOST}:{listening.getsockname()[1]}"

        server = make_server(
            app,
            Limits(seconds=2),
            on_start=lambda: tell(f"watching {folder} at {where}; Ctrl-C ends it"),
            on_stop=lambda: tell("stopped"),
        )
        server.run(sockets=[listening])
    return 0
