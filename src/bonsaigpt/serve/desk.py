"""What every endpoint needs: the body read and checked, the model that is meant, and a client that may go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bonsaigpt.errors import TokenizerError, did_you_mean
from bonsaigpt.generate.dialogue import Template
from bonsaigpt.serve.limits import Limits
from bonsaigpt.serve.metrics import Metrics
from bonsaigpt.serve.models import Models, Served
from bonsaigpt.serve.refusals import Refused, invalid, misread
from bonsaigpt.serve.worker import Worker

__all__ = ["Desk", "Gone"]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_LONG = 4096
"""Characters from which a text is encoded beside the event loop."""


class Gone(Exception):
    """The client left."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Of one server."""

    models: Models
    worker: Worker
    limits: Limits
    metrics: Metrics
    template: Template
    """Of dialogues."""

    def model(self, name: str) -> Served:
        """The model of that name.

        Raises:
            Refused: there is none.
        """
        found = self.models.served.get(name)
        if found is None:
            hint = did_you_mean(name, self.models.served)
            words = f"The model '{name[:100]}' does not exist: see /v1/models.{hint}"
            raise Refused(404, words, param="model", code="model_not_found")
        return found

    async def read(self, request: Request, form: type[M]) -> M:
        """The body of a request.

        Raises:
            Refused: it is not JSON, too long, too slow, or not of this form.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a web page of another origin could send anything else without asking
            raise Refused(415, "Send JSON, with the header 'Content-Type: application/json'.", code="content_type")
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.limits.body:
                        words = f"The request is too long: send {self.limits.body} bytes at most."
                        raise Refused(413, words, code="too_long", headers={"connection": "close"})
        except TimeoutError:
            words = f"The request took more than {self.limits.body_seconds:g} s to come."
            raise Refused(408, words, code="too_slow", headers={"connection": "close"}) from None
        except ClientDisconnect:
            raise Gone from None
        try:
            return form.model_validate_json(bytes(body))
        except ValidationError as error:
            raise misread(error, list(form.model_fields)) from None

    async def tokens(self, model: Served, text: str | list[int] | None, *, param: str) -> list[int]:
        """A prompt's tokens.

        Raises:
            Refused: nothing, too much, or what the model does not know.
        """
        if text is None:
            return model.start
        try:
            if isinstance(text, list):
                tokens = text
            elif len(text) > _LONG:
                tokens = await asyncio.to_thread(model.encode, text)
            else:
                tokens = model.encode(text)
        except TokenizerError as error:
            raise invalid(str(error), param=param) from None
        if not tokens:
            raise invalid(f"'{param}' is empty: give one character at least.", param=param)
        if max(tokens) >= model.tokenizer.vocab_size:
            raise invalid(f"A token is outside the vocabulary of {model.tokenizer.vocab_size}.", param=param)
        if len(tokens) > self.limits.prompt:
            words = f"{len(tokens)} tokens are too many: send {self.limits.prompt} at most."
            raise invalid(words, param=param, code="context_length_exceeded")
        return tokens

    async def unless_gone(self, request: Request, work: Coroutine[None, None, T]) -> T:
        """What the work returns; it is cancelled when the client leaves.

        Raises:
            Gone: the client left.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Gone
            return task.result()
        finally:
            gone.cancel()
            if task.cancel():
                await asyncio.wait({task})

    async def stream(self, request: Request, pieces: AsyncGenerator[bytes, None]) -> Response:
        """Server-sent events. What is refused before the first is refused with its status; later in an event."""

        async def first() -> bytes:
            return await anext(pieces)

        async def told() -> AsyncIterator[bytes]:
            yield begun
            try:
                async for piece in pieces:
                    yield piece
            except Refused as refused:
                yield b"data: " + json.dumps(refused.body()).encode() + b"\n\n"
            answer.whole = True

        begun = await self.unless_gone(request, first())
        answer = _Stream(told(), pieces, self.metrics)
        return answer


class _Stream(StreamingResponse):
    """Whatever happens to the answer, the pieces are closed, and with them what makes them."""

    def __init__(self, told: AsyncIterator[bytes], pieces: AsyncGenerator[bytes, None], metrics: Metrics) -> None:
        super().__init__(told, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._pieces, self._metrics = pieces, metrics
        self.whole = False
        """Whether all was told."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
            if not self.whole:  # it ends early without a fault when the client leaves
                self._metrics.gone += 1
        finally:
            await self._pieces.aclose()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
