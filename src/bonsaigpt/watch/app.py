"""The application behind the page: what happens as server-sent events, and what is asked for, run by run.

Runs are found by their names among those that are there; no path comes from a request. The page may load nothing and
speak to nobody but this server, and this server listens to nobody but this machine.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.errors import BonsaiError
from bonsaigpt.report.compare import comparison_sections
from bonsaigpt.report.health import health_section
from bonsaigpt.report.history import read_history
from bonsaigpt.report.markup import text
from bonsaigpt.watch.following import Follower, find_runs
from bonsaigpt.watch.studies import read_study

__all__ = ["make_app"]

_EVERY = 0.5
"""Seconds between two looks."""
_BEAT = 15.0
"""Seconds of silence after which a comment is sent, so that a lost connection is noticed."""
_COMPARED = 12
"""Runs that are held against each other at most."""


def make_app(root: Path, *, hosts: list[str], stopping: Callable[[], bool] = lambda: False) -> Starlette:
    """The ASGI application.

    Args:
        root: the folder of runs, or a run.
        hosts: names by which the server may be called, against pages whose own name was pointed here.
        stopping: whether the streams are to end.
    """
    at = partial(_run, root)

    async def events(request: Request) -> Response:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_stream(Follower(root), stopping), media_type="text/event-stream", headers=headers)

    def samples(request: Request) -> Response:
        found = read_history(RunDirectory(at(request))).samples
        return JSONResponse([{"step": sample.step, "text": sample.text} for sample in found])

    def health(request: Request) -> Response:
        history = read_history(RunDirectory(at(request)))
        return HTMLResponse(health_section(history.health, history.findings))

    def study(request: Request) -> Response:
        found = read_study(at(request), request.path_params["study"])
        if found is None:
            raise HTTPException(404, "there is no such study")
        return JSONResponse(found)

    def comparison(request: Request) -> Response:
        known = find_runs(root)
        names = [name for name in request.query_params.getlist("run")[:_COMPARED] if name in known]
        return HTMLResponse(comparison_sections(names, [read_history(RunDirectory(known[name])) for name in names]))

    routes = [
        Route("/", partial(_page, root)),
        Route("/events", events),
        Route("/comparison", comparison),
        Route("/samples/{name:path}", samples),
        Route("/health/{name:path}", health),
        Route("/studies/{study}/{name:path}", study),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={BonsaiError: _refused})


async def _stream(follower: Follower, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """Messages of all looks; the first one tells everything, after a lost connection too."""
    begin, quiet = True, 0.0
    while not stopping():
        messages = await run_in_threadpool(follower.look)
        if begin:
            messages.insert(0, {"kind": "begin"})
        if messages:
            yield f"data: {json.dumps(messages)}\n\n"
            quiet = 0.0
        elif quiet >= _BEAT:
            yield ": still here\n\n"
            quiet = 0.0
        begin = False
        quiet += _EVERY
        await asyncio.sleep(_EVERY)


def _run(root: Path, request: Request) -> Path:
    """The run that a request names."""
    name = request.path_params["name"]
    if (path := find_runs(root).get(name)) is None:
        raise HTTPException(404, "there is no such run")
    return path


def _page(root: Path, request: Request) -> Response:
    """The page, whole: style and script are in it, and its policy allows this very script alone."""
    files = {name: _file(name) for name in ("page.html", "page.css", "page.js")}
    style = resources.files("bonsaigpt.report").joinpath("style.css").read_text(encoding="utf-8") + files["page.css"]
    parts = {"ROOT": text(root), "STYLE": style, "SCRIPT": files["page.js"]}
    html = files["page.html"]
    for name, part in parts.items():
        html = html.replace(f"<!--{name}-->", part)
    digest = base64.b64encode(hashlib.sha256(files["page.js"].encode()).digest()).decode()
    policy = [
        "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'; base-uri 'none'; frame-ancestors 'none'",
    ]
    return HTMLResponse(html, headers={"content-security-policy": "; ".join(policy)})


def _file(name: str) -> str:
    return resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")


def _refused(request: Request, error: Exception) -> Response:
    """A run that cannot be read, in words."""
    content: dict[str, Any] = {"error": str(error)}
    return JSONResponse(content, status_code=409)
