"""What the playground page asks for, under `/bonsai/`: readings, texts token by token, distributions, attention.

Texts go as token ids both ways, so that a branch at a token is a branch there and no new cut of the text.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bonsaigpt.config import KVConfig
from bonsaigpt.errors import BonsaiError, ConfigError
from bonsaigpt.generate import LogProb, Request
from bonsaigpt.generate.context import context_start
from bonsaigpt.kv import read_policy
from bonsaigpt.sampling import Chooser, log_probabilities
from bonsaigpt.serve.desk import Desk
from bonsaigpt.serve.models import Key, Reading, Served
from bonsaigpt.serve.refusals import invalid
from bonsaigpt.serve.schemas import Ids, Sampled
from bonsaigpt.structure import structures

__all__ = ["AttentionRequest", "NextRequest", "ReadRequest", "WriteRequest", "page_routes", "routes"]

T = TypeVar("T")

_MAP_BYTES = 1_500_000
"""Of attention maps in one answer: of longer texts the last tokens are told."""
_LONGEST = 1024
"""Tokens that are read of a text that has no end."""


class ReadRequest(Sampled):
    """A text to read; its rules of sampling are those that ``next`` applies."""

    model: Annotated[str, Field(max_length=256)]
    """One of those that `/bonsai/models` lists."""
    kv: Annotated[str, Field(max_length=300)] = ""
    """What the cache keeps, in the words of `--kv`; the server's own choice if empty."""
    text: str | None = None
    """A text,"""
    tokens: Ids | None = None
    """or its token ids."""


class NextRequest(ReadRequest):
    """What may come next."""

    top: Annotated[int, Field(ge=1, le=512)] = 40
    """So many likeliest tokens."""


class WriteRequest(ReadRequest):
    """A text to go on with, token by token."""

    max_tokens: Annotated[int, Field(ge=1)] = 64
    """New ones."""


class AttentionRequest(ReadRequest):
    """A text whose tokens' attention is to be seen."""


def routes() -> list[Route]:
    """Of the page's questions."""
    return [
        Route("/bonsai/models", _models),
        Route("/bonsai/read", _read, methods=["POST"]),
        Route("/bonsai/next", _next, methods=["POST"]),
        Route("/bonsai/write", _write, methods=["POST"]),
        Route("/bonsai/attention", _attention, methods=["POST"]),
    ]


def page_routes() -> list[Route]:
    """Of the page itself, which holds nothing that a key would guard."""
    kinds = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
    return [
        Route("/" if name == "page.html" else f"/bonsai/{name}", partial(_file, name=name, kind=kind))
        for name, kind in kinds.items()
    ]


_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


async def _file(request: HTTPRequest, *, name: str, kind: str) -> Response:
    content = (files("bonsaigpt.serve") / "page" / name).read_bytes()
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers)


async def _models(request: HTTPRequest) -> Response:
    desk: Desk = request.app.state.desk
    limits = {"tokens": desk.limits.tokens, "prompt": desk.limits.prompt}
    return JSONResponse({"models": [_about(model) for model in desk.models.served.values()], "limits": limits})


def _about(model: Served) -> dict[str, Any]:
    config = model.config
    made = structures(config)
    factored = [structure for structure in made.values() if structure.factored]
    plan = ""
    if factored:
        kinds = sorted({type(structure).__name__ for structure in factored})
        plan = f"{len(factored)} of {len(made)} matrices are factored: {', '.join(kinds)}"
    try:
        KVConfig().check(config)
        no_policies = ""
    except ValueError as error:
        no_policies = str(error)
    return {
        "id": model.name,
        "parameters": model.parameters,
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "block": config.block_size,
        "vocabulary": model.tokenizer.vocab_size,
        "tokenizer": model.tokenizer.kind,
        "alphabet": model.alphabet,
        "attention": config.attention.kind,
        "positions": config.position.kind,
        "plan": plan,
        "no_policies": no_policies,
        "measured": dict(model.policies),
        "start": model.start,
    }


async def _read(request: HTTPRequest) -> Response:
    desk, _, key, tokens = await _asked(request, ReadRequest)
    model = desk.models.served[key[0]]
    shown = _context(model, key, tokens)
    reading = await _done(desk, lambda: desk.models.read(key, shown))
    told = [_token(model, p) for p in reading.logprobs]
    before = [_token(model, LogProb(token, math.nan)) for token in tokens[: len(tokens) - len(shown)]]
    return JSONResponse({"tokens": before + told, **_figures(reading)})


async def _next(request: HTTPRequest) -> Response:
    desk, asked, key, tokens = await _asked(request, NextRequest)
    model = desk.models.served[key[0]]
    shown = _context(model, key, tokens)
    reading = await _done(desk, lambda: desk.models.read(key, shown))
    logprobs = log_probabilities(reading.next_V)
    try:
        chooser = Chooser(asked.sampling(seed=0, row=0), prompt=np.array(tokens), vocab_size=len(logprobs))
        ruled = np.exp(chooser.distribution(reading.next_V))
    except BonsaiError as error:
        raise invalid(str(error)) from None
    probs = np.exp(logprobs)
    best = np.argsort(-np.maximum(probs, ruled), kind="stable")[: asked.top].tolist()
    return JSONResponse(
        {
            "tokens": [[i, model.piece(i), round(float(probs[i]), 6), round(float(ruled[i]), 6)] for i in best],
            "entropy": float(-(probs * logprobs).sum()),
            "kept": int((ruled > 0).sum()),
        }
    )


async def _write(request: HTTPRequest) -> Response:
    desk, asked, key, tokens = await _asked(request, WriteRequest)
    if asked.max_tokens > desk.limits.tokens:
        words = f"{asked.max_tokens} tokens are too many: ask for {desk.limits.tokens} at most."
        raise invalid(words, param="max_tokens")
    model = desk.models.served[key[0]]
    try:
        sampling = asked.sampling(seed=secrets.randbits(32), row=0)
        wanted = Request(prompt=tokens, max_tokens=asked.max_tokens, sampling=sampling, logprobs=0)
    except BonsaiError as error:
        raise invalid(str(error)) from None
    end = model.tokenizer.end_of_text
    return await desk.stream(
        request, _pieces(desk, key, model, replace(wanted, stop_tokens=[end] if end is not None else []))
    )


async def _pieces(desk: Desk, key: Key, model: Served, wanted: Request) -> AsyncGenerator[bytes, None]:
    made, finish = 0, None
    async with desk.worker.job(key, [wanted]) as job:
        async for batch in job.batches():
            lines = []
            for _, event in batch:
                if event.logprob is not None:
                    made += 1
                    lines.append(_sent(_token(model, event.logprob)))
                finish = event.finish or finish
            if lines:
                yield b"".join(lines)
        yield _sent({"finish": finish, "made": made, "seconds": job.seconds})


async def _attention(request: HTTPRequest) -> Response:
    desk, _, key, tokens = await _asked(request, AttentionRequest)
    model = desk.models.served[key[0]]
    config = model.config
    most = max(1, math.isqrt(_MAP_BYTES // (config.n_layer * config.n_head)))
    shown = _context(model, key, tokens)[-most:]
    maps_LHTT = await _done(desk, lambda: desk.models.maps(key, shown))
    data = base64.b64encode(np.round(maps_LHTT * 255).astype(np.uint8).tobytes()).decode()
    shape = {"layers": config.n_layer, "heads": config.n_head, "tokens": len(shown)}
    return JSONResponse({**shape, "first": len(tokens) - len(shown), "maps": data})


# ------------------------------------------------------------------ helpers

R = TypeVar("R", bound=ReadRequest)


async def _asked(request: HTTPRequest, form: type[R]) -> tuple[Desk, R, Key, list[int]]:
    """The request, and its text as tokens.

    Raises:
        Refused: it cannot be met.
    """
    desk: Desk = request.app.state.desk
    asked = await desk.read(request, form)
    model = desk.model(asked.model)
    try:
        if asked.kv:
            read_policy(asked.kv).check(model.config)
    except (ConfigError, ValueError) as error:
        raise invalid(str(error), param="kv") from None
    text = asked.tokens if asked.tokens is not None else asked.text or None
    return desk, asked, (model.name, asked.kv), await desk.tokens(model, text, param="text")


async def _done(desk: Desk, work: Callable[[], T]) -> T:
    try:
        return await desk.worker.call(work)
    except BonsaiError as error:
        raise invalid(str(error)) from None


def _context(model: Served, key: Key, tokens: list[int]) -> list[int]:
    """What the model sees of a text when it goes on with it."""
    kv, block = model.policy(key[1]), model.config.block_size
    if kv is not None and kv.unbounded(model.config):  # it sees all; to read all takes its time
        return tokens[-max(block, _LONGEST) :]
    return tokens[context_start(len(tokens), block, max(1, block // 8)) :]


def _token(model: Served, p: LogProb) -> dict[str, Any]:
    logprob = None if math.isnan(p.logprob) else round(p.logprob, 5)
    return {"id": p.token, "text": model.piece(p.token), "logprob": logprob}


def _figures(reading: Reading) -> dict[str, Any]:
    count = len(reading.logprobs)
    return {"loss": reading.loss, "bits": reading.bits, "bits_per_token": reading.bits / count, "read": count}


def _sent(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
