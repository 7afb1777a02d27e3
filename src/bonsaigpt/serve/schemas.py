"""What a client may ask for: the fields of OpenAI's API that mean something here, checked before anything is done.

A field that is not known is refused, as OpenAI does, so that nobody believes in a setting that has no effect. Fields
that could not have one anyway (``user``, ``metadata``) are taken. A few settings of our own stand beside OpenAI's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bonsaigpt.sampling import Sampling

__all__ = ["ChatRequest", "CompletionRequest", "Message", "Sampled"]

Stop = Annotated[str, Field(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Ids = Annotated[list[Token], Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StreamOptions(_Model):
    """Of a stream."""

    include_usage: bool = False
    """Tell the numbers of tokens at the end."""
    include_obfuscation: bool | None = None
    """Has no effect."""


class Sampled(_Model):
    """How tokens are drawn: the same rules and the same noise as `bonsai sample` (docs/sampling.md)."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Divides the logits; 0 takes the likeliest token. 1 if left out."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw from the likeliest tokens of this total probability."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Draw from so many likeliest tokens (not OpenAI's)."""
    min_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw from tokens with this share of the likeliest one's probability (not OpenAI's)."""
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw from the tokens of least unusual surprise, of this total probability (not OpenAI's)."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Above 1: make all tokens of prompt and text less likely (not OpenAI's)."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken from a token's logit for each time it was written, in nats."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken from a token's logit once it was written, in nats."""
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    """Added to the logits of these token ids, in nats; -100 forbids one."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """Same seed, same text. Drawn by the server if left out."""

    def sampling(self, *, seed: int, row: int) -> Sampling:
        """The rules; ``seed`` where the client gave none."""
        given: dict[str, Any] = {name: value for name in _RULES if (value := getattr(self, name)) is not None}
        bias = {int(token): nats for token, nats in (self.logit_bias or {}).items()}
        return Sampling(**given, logit_bias=bias, seed=self.seed if self.seed is not None else seed, row=row)


_RULES = [name for name in Sampled.model_fields if name not in ("logit_bias", "seed")]


class _Texts(Sampled):
    """What both kinds of request have."""

    model: Annotated[str, Field(max_length=256)]
    """One of those that `/v1/models` lists."""
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    """How many texts for each prompt. The i-th has the noise of row i of the seed. 1 if left out."""
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    """A text ends where one of these would begin."""
    stream: bool | None = None
    """Send the text piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    ignore_eos: bool | None = None
    """Write on past the end of a text (not OpenAI's)."""
    user: str | None = None
    """Has no effect."""
    metadata: dict[str, str] | None = None
    """Has no effect."""

    @property
    def stops(self) -> list[str]:
        """Stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class CompletionRequest(_Texts):
    """A body of `/v1/completions`."""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
        | None
    ) = None
    """A text, its token ids, or several of either. The end of another text (or a new line) if left out."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """New tokens at most. 16 if left out."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Tell the log-probability of each token and of so many likeliest ones, by the model, before all rules, in nats."""
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """Of so many texts the `n` best: only as many as `n`, which are then all."""
    echo: bool | None = None
    """Give the prompt back too; with `logprobs` and `max_tokens` 0 this scores a text."""


class Message(_Model):
    """A turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    """Whose."""
    content: str
    """Its text."""
    name: str | None = None
    """Has no effect."""


class ChatRequest(_Texts):
    """A body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    """The dialogue so far, written down in the server's template."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """New tokens at most. As many as the model's block has room for if left out, and 64 at least."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`."""
    logprobs: bool | None = None
    """Tell the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """And of so many likeliest ones; only with `logprobs`."""
