"""Sockets: binding, connections that dawdle, signals, and the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from bonsaigpt.errors import OutputError
from bonsaigpt.serve.limits import Limits

__all__ = ["LOOPBACK", "bind", "make_server"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
"""Names of this machine for itself."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OutputError: the address is not of this machine, or taken.
    """
    if not 0 <= port < 1 << 16:  # the system would take the rest of a division
        raise OutputError(f"there is no port {port}: use 0 (a free one) to 65535 with --port")
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        words = (error.strerror or str(error)).partition(" (while")[0]
        raise OutputError(f"cannot listen on {host}:{port}: {words}. Choose another with --host and --port.") from None


def make_server(
    app: ASGIApp,
    limits: Limits,
    *,
    on_start: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """A server that is ready to ``run`` on a bound socket. Ctrl-C and SIGTERM let it finish what runs, after
    ``on_stop``; a second Ctrl-C does not."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,  # theirs closes the handlers of everybody else in the process
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
        h11_max_incomplete_event_size=32 * 1024,
    )
    return _Server(config, on_start, on_stop)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start, self._on_stop = on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets=sockets)


def _protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's waits for ever for the rest of a head, and for a client to read what it was sent; this one does not."""

    class Protocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head, self._stalled):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(limits.stalled_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None
            super().resume_writing()

        def _await_head(self) -> None:
            """A head that has begun to come must end in time."""
            waiting = self.conn.their_state is h11.IDLE
            if waiting and self._head is None:
                self._head = self.loop.call_later(limits.header_seconds, self.transport.abort)
            elif not waiting and self._head is not None:
                self._head.cancel()
                self._head = None

    return Protocol
