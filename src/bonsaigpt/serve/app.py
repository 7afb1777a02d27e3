"""The application: routes, and the gate that every request passes."""

from __future__ import annotations

import contextlib
import hmac
import sys
import traceback
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bonsaigpt.generate.dialogue import Template
from bonsaigpt.progress import Say, silent
from bonsaigpt.serve import description, openai, playground
from bonsaigpt.serve.desk import Desk, Gone
from bonsaigpt.serve.limits import Limits
from bonsaigpt.serve.metrics import Metrics
from bonsaigpt.serve.models import Models
from bonsaigpt.serve.refusals import Refused
from bonsaigpt.serve.worker import Worker

__all__ = ["Gate", "make_app"]

_OPEN = {"/health", *(route.path for route in playground.page_routes())}
"""Paths that need no key."""

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def make_app(
    models: Models,
    limits: Limits,
    template: Template,
    *,
    key: str | None = None,
    hosts: frozenset[str] | None = None,
    say: Say = silent,
) -> Gate:
    """The ASGI application, with every model ready to write.

    Args:
        template: of dialogues.
        key: that clients must show, as ``Authorization: Bearer KEY``.
        hosts: names by which the server may be called; none means any. Without a key they keep out web pages whose own
            name was pointed here (DNS rebinding).
        say: is told what takes a while.

    Raises:
        GenerateError: the logits of a model are not finite.
    """
    metrics = Metrics()
    worker = Worker(models, models.warm(say), limits, metrics)
    desk = Desk(models=models, worker=worker, limits=limits, metrics=metrics, template=template)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        desk.worker.start()
        try:
            yield
        finally:
            desk.worker.close()

    routes = [
        Route("/health", _health),
        Route("/metrics", _metrics),
        Route("/openapi.json", _openapi),
        Route("/v1/models", openai.list_models),
        Route("/v1/models/{model:path}", openai.show_model),
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/chat/completions", openai.chat, methods=["POST"]),
        *playground.routes(),
        *playground.page_routes(),
    ]
    handlers: Any = {Refused: _refused, HTTPException: _http_error, Gone: _gone}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.state.desk = desk
    return Gate(app, desk, routes, key=key, hosts=hosts)


class Gate:
    """Who may come in; what came of it; and the last catch."""

    def __init__(
        self, app: ASGIApp, desk: Desk, routes: list[Route], *, key: str | None, hosts: frozenset[str] | None
    ) -> None:
        self._app, self._desk, self._routes = app, desk, routes
        self._key = key.encode() if key is not None else None
        self._hosts = hosts

    @property
    def texts(self) -> int:
        """Texts at work or waiting."""
        return self._desk.worker.texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            refused = self._refused(scope)
            await (refused.response() if refused is not None else self._app)(scope, receive, noted)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not status:
                words = Refused(500, "Something went wrong in the server.", code="internal_error")
                await words.response()(scope, receive, noted)
        finally:
            self._desk.metrics.requests[self._route(scope), status] += 1

    def _refused(self, scope: Scope) -> Refused | None:
        headers = dict(scope["headers"])
        if self._hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name not in self._hosts:
                return Refused(421, "This server is not called by that name.", code="host")
        if self._key is not None and scope["path"] not in _OPEN:
            kind, _, shown = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(shown.strip(), self._key):
                words = "Show the server's API key: 'Authorization: Bearer KEY'."
                return Refused(401, words, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return None

    def _route(self, scope: Scope) -> str:
        """The route's own words, so that what clients make up is not counted one by one."""
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(request: Request) -> Response:
    desk: Desk = request.app.state.desk
    text = desk.metrics.text(texts=desk.worker.texts)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _openapi(request: Request) -> Response:
    desk: Desk = request.app.state.desk
    return JSONResponse(description.openapi(tuple(desk.models.served)))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "There is nothing at this address.", 405: "This address has no such method."}
    message = words.get(error.status_code, "The request cannot be met.")
    return Refused(error.status_code, message, code="not_found", headers=error.headers).response()


async def _gone(request: Request, error: Exception) -> Response:
    desk: Desk = request.app.state.desk
    desk.metrics.gone += 1
    return Response(status_code=499)
