"""`/v1/completions`, `/v1/chat/completions` and `/v1/models`: OpenAI's requests and answers, made of sessions' events.

With the same settings and seed the text of choice i is that of sample i of `bonsai sample`. A text ends at the
vocabulary's end-of-text token, as `--stop-token end` does there.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from bonsaigpt import __version__
from bonsaigpt.errors import BonsaiError
from bonsaigpt.generate import LogProb, Request
from bonsaigpt.generate.dialogue import Template
from bonsaigpt.serve.desk import Desk
from bonsaigpt.serve.models import Served
from bonsaigpt.serve.refusals import invalid
from bonsaigpt.serve.schemas import ChatRequest, CompletionRequest, Message

__all__ = ["chat", "completions", "dialogue_text", "list_models", "show_model"]

_LEAST = 64
"""Tokens that an answer may have where the dialogue fills the model's block."""
_FINISHES = {"length": "length", "incomplete": "length"}
"""All other reasons are OpenAI's ``stop``."""


async def list_models(request: HTTPRequest) -> Response:
    """All models."""
    desk: Desk = request.app.state.desk
    return JSONResponse({"object": "list", "data": [_about(model) for model in desk.models.served.values()]})


async def show_model(request: HTTPRequest) -> Response:
    """One of them."""
    desk: Desk = request.app.state.desk
    return JSONResponse(_about(desk.model(request.path_params["model"])))


def _about(model: Served) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "bonsai"}


async def completions(request: HTTPRequest) -> Response:
    """Texts that go on with prompts."""
    desk: Desk = request.app.state.desk
    asked = await desk.read(request, CompletionRequest)
    model = desk.model(asked.model)
    if asked.best_of not in (None, asked.n or 1):
        raise invalid("'best_of' other than 'n' is not offered: ask for 'n' texts.", param="best_of")
    tokens = 16 if asked.max_tokens is None else asked.max_tokens
    prompts = [await desk.tokens(model, prompt, param="prompt") for prompt in _prompts(asked)]
    scored = asked.echo and asked.logprobs is not None
    if scored and max(len(prompt) for prompt in prompts) > model.config.block_size:
        raise invalid(f"A prompt to be scored has at most {model.config.block_size} tokens.", param="prompt")
    requests = _requests(desk, model, asked, prompts, tokens, asked.logprobs)
    scores = [await _score(desk, model, prompt, asked.logprobs or 0) if scored else [] for prompt in prompts]
    heads = [(model.tokenizer.decode(p) if asked.echo else "", s) for p, s in zip(prompts, scores, strict=True)]
    ends = Counter[int]()

    def choice(index: int, text: str, logprobs: list[LogProb] | None, finish: str | None) -> dict[str, Any]:
        told = None
        if logprobs is not None:
            told, ends[index] = _completion_logprobs(model, logprobs, ends[index])
        return {"index": index, "text": text, "logprobs": told, "finish_reason": finish}

    shape = _Shape(
        prefix="cmpl",
        kinds=("text_completion", "text_completion"),
        choice=choice,
        chunk=choice,
        heads=[head for head in heads for _ in range(asked.n or 1)],
        logprobs=asked.logprobs is not None,
    )
    return await _answer(request, desk, requests, _Answer(shape, model, prompts), asked)


async def chat(request: HTTPRequest) -> Response:
    """The next turn of a dialogue."""
    desk: Desk = request.app.state.desk
    asked = await desk.read(request, ChatRequest)
    model = desk.model(asked.model)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("'top_logprobs' is only allowed with 'logprobs'.", param="top_logprobs")
    if (why := model.cannot_speak(desk.template)) is not None:
        raise invalid(f"This model cannot have a dialogue: {why} Use /v1/completions.", param="model")
    prompt = await desk.tokens(model, dialogue_text(asked.messages, desk.template), param="messages")
    room = min(desk.limits.tokens, max(_LEAST, model.config.block_size - len(prompt)))
    most = asked.max_completion_tokens or asked.max_tokens or room
    asked.stop = [*asked.stops, desk.template.stop]
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    requests = _requests(desk, model, asked, [prompt], most, logprobs)
    begun = set[int]()

    def told(logprobs: list[LogProb] | None) -> dict[str, Any] | None:
        return None if logprobs is None else {"content": [_chat_logprob(model, p) for p in logprobs], "refusal": None}

    def choice(index: int, text: str, logprobs: list[LogProb] | None, finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": told(logprobs), "finish_reason": finish}

    def chunk(index: int, text: str, logprobs: list[LogProb] | None, finish: str | None) -> dict[str, Any]:
        delta = {"content": text} if index in begun else {"role": "assistant", "content": text}
        begun.add(index)
        return {"index": index, "delta": delta, "logprobs": told(logprobs), "finish_reason": finish}

    shape = _Shape(
        prefix="chatcmpl",
        kinds=("chat.completion", "chat.completion.chunk"),
        choice=choice,
        chunk=chunk,
        heads=[("", [])] * len(requests),
        logprobs=logprobs is not None,
    )
    return await _answer(request, desk, requests, _Answer(shape, model, [prompt]), asked)


def dialogue_text(messages: Sequence[Message], template: Template) -> str:
    """A dialogue as the text that the model goes on with; what a system says stands alone at its place."""
    text = template.system
    for message in messages:
        role = {"user": template.user, "assistant": template.assistant}.get(message.role, "")
        text += role + message.content + template.end
    return text + template.assistant


# ------------------------------------------------------------------ requests


def _prompts(asked: CompletionRequest) -> list[str | list[int] | None]:
    prompt = asked.prompt
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        return list(prompt)  # type: ignore[arg-type]  # several
    return [prompt]  # type: ignore[list-item]  # one


def _requests(
    desk: Desk, model: Served, asked: Any, prompts: Sequence[list[int]], tokens: int, logprobs: int | None
) -> list[Request]:
    """All texts of a request, prompt by prompt."""
    n, limits = asked.n or 1, desk.limits
    if n * len(prompts) > limits.rows:
        raise invalid(f"{n * len(prompts)} texts are too many: ask for {limits.rows} at most.", param="n")
    if tokens > limits.tokens:
        raise invalid(f"{tokens} tokens are too many: ask for {limits.tokens} at most.", param="max_tokens")
    if asked.stream_options is not None and not asked.stream:
        raise invalid("'stream_options' is only allowed with 'stream'.", param="stream_options")
    end = model.tokenizer.end_of_text
    stop_tokens = [end] if end is not None and not asked.ignore_eos else []
    seed = secrets.randbits(32)
    try:
        return [
            Request(
                prompt=prompt,
                max_tokens=tokens,
                sampling=asked.sampling(seed=seed, row=row),
                stop=asked.stops,
                stop_tokens=stop_tokens,
                logprobs=logprobs,
            )
            for prompt in prompts
            for row in range(n)
        ]
    except BonsaiError as error:
        raise invalid(str(error)) from None


async def _score(desk: Desk, model: Served, prompt: list[int], top: int) -> list[LogProb]:
    """The tokens of a prompt as the model foresaw them; of the first it foresaw nothing, which is told as NaN."""

    return (await desk.worker.call(lambda: desk.models.read((model.name, ""), prompt, top=top))).logprobs


# ------------------------------------------------------------------ answers

_Choice = Callable[[int, str, list[LogProb] | None, str | None], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """In which the two kinds of request differ."""

    prefix: str
    kinds: tuple[str, str]
    """What the objects are called, of a whole answer and of a piece."""
    choice: _Choice
    """(index, text, logprobs, finish) of a whole text."""
    chunk: _Choice
    """The same of a piece."""
    heads: list[tuple[str, list[LogProb]]]
    """What each text begins with before anything was made, and its scores."""
    logprobs: bool


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class _Answer:
    """What every piece of an answer says again."""

    def __init__(self, shape: _Shape, model: Served, prompts: Sequence[Sequence[int]]) -> None:
        self.shape, self.key = shape, (model.name, "")
        self.prompt_tokens = sum(len(prompt) for prompt in prompts)
        self._common = {
            "id": f"{shape.prefix}-{secrets.token_hex(12)}",
            "object": "",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": f"bonsai-{__version__}",
        }
        self._begun = f"data: {_encode(self._common | {'object': shape.kinds[1]})[:-1]}"

    def whole(self, choices: list[dict[str, Any]], made: int) -> Response:
        body = self._common | {"object": self.shape.kinds[0], "choices": choices, "usage": self.usage(made)}
        return JSONResponse(body)

    def piece(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """An event of a stream. There is one for every token of every client: what all say is encoded once."""
        return f"{self._begun},{_encode({'choices': choices, **more})[1:]}\n\n".encode()

    def usage(self, made: int) -> dict[str, int]:
        read = self.prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


async def _answer(
    request: HTTPRequest, desk: Desk, requests: list[Request], answer: _Answer, asked: CompletionRequest | ChatRequest
) -> Response:
    desk.metrics.prompt_tokens += answer.prompt_tokens
    if not asked.stream:
        return await desk.unless_gone(request, _whole(desk, requests, answer))
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return await desk.stream(request, _pieces(desk, requests, answer, usage=usage))


async def _whole(desk: Desk, requests: list[Request], answer: _Answer) -> Response:
    shape = answer.shape
    texts = [text for text, _ in shape.heads]
    logprobs = [list(scores) for _, scores in shape.heads]
    finishes: list[str | None] = [None] * len(requests)
    made = 0
    async with desk.worker.job(answer.key, requests) as job:
        async for batch in job.batches():
            for index, event in batch:
                texts[index] += event.piece
                made += event.token is not None
                if event.logprob is not None:
                    logprobs[index].append(event.logprob)
                if event.finish is not None:
                    finishes[index] = _FINISHES.get(event.finish, "stop")
    choices = [
        shape.choice(index, texts[index], logprobs[index] if shape.logprobs else None, finishes[index])
        for index in range(len(requests))
    ]
    return answer.whole(choices, made)


async def _pieces(desk: Desk, requests: list[Request], answer: _Answer, *, usage: bool) -> AsyncGenerator[bytes, None]:
    """Server-sent events; those that are there at once go out together."""
    shape = answer.shape
    none = {"usage": None} if usage else {}
    made = 0

    def line(index: int, text: str, logprobs: list[LogProb], finish: str | None) -> bytes:
        return answer.piece([shape.chunk(index, text, logprobs if shape.logprobs else None, finish)], **none)

    async with desk.worker.job(answer.key, requests) as job:
        parts = [line(index, *head, None) for index, head in enumerate(shape.heads) if head[0]]
        async for batch in job.batches():
            for index, event in batch:
                made += event.token is not None
                finish = _FINISHES.get(event.finish, "stop") if event.finish is not None else None
                if event.piece or finish is not None or (shape.logprobs and event.logprob is not None):
                    parts.append(line(index, event.piece, [event.logprob] if event.logprob else [], finish))
            if parts:
                yield b"".join(parts)
                parts.clear()
    if usage:
        yield answer.piece([], usage=answer.usage(made))
    yield b"data: [DONE]\n\n"


def _completion_logprobs(model: Served, logprobs: Sequence[LogProb], at: int) -> tuple[dict[str, Any], int]:
    """The tokens of a text from one character on, and the character after them."""
    tokens = [model.piece(p.token) for p in logprobs]
    offsets = [at + before for before in accumulate((len(token) for token in tokens), initial=0)]
    told = {
        "tokens": tokens,
        "token_logprobs": [None if math.isnan(p.logprob) else p.logprob for p in logprobs],
        "top_logprobs": [_alternatives(model, p) or None for p in logprobs],
        "text_offset": offsets[:-1],
    }
    return told, offsets[-1]


def _alternatives(model: Served, p: LogProb) -> dict[str, float]:
    """The likeliest tokens, and the one that was drawn if it is none of them."""
    told = {model.piece(token): value for token, value in p.top}
    return told | {model.piece(p.token): p.logprob} if told and not math.isnan(p.logprob) else told


def _chat_logprob(model: Served, p: LogProb) -> dict[str, Any]:
    def told(token: int, logprob: float) -> dict[str, Any]:
        return {"token": model.piece(token), "logprob": logprob, "bytes": model.data(token)}

    return told(p.token, p.logprob) | {"top_logprobs": [told(*pair) for pair in p.top]}
