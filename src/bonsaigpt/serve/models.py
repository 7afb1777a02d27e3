"""The models that a server has, and the decoders that it makes of them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bonsaigpt.config import KVConfig, ModelConfig
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Decoder, Engine
from bonsaigpt.errors import GenerateError, TokenizerError
from bonsaigpt.generate import LogProb, Session
from bonsaigpt.generate.context import check_lengths
from bonsaigpt.generate.dialogue import Template
from bonsaigpt.kv import full_bits_per_token, read_policy, state_bits
from bonsaigpt.progress import Say, silent

__all__ = ["Key", "Models", "Reading", "Served"]

Key = tuple[str, str]
"""A model's name, and a cache policy in words; without words it is the server's own."""

_SCRATCH = 8
"""Decoders that are kept for reading texts."""
_CHUNK = 64
"""Tokens of a text that are read at once."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text of T tokens that was read."""

    logprobs: list[LogProb]
    """Of each token; of the first nothing was foreseen, which is told as NaN."""
    next_V: np.ndarray
    """Logits after the last."""
    bits: int
    """Held of it by the cache."""
    seconds: float

    @property
    def loss(self) -> float | None:
        """Nats a token, of all but the first."""
        rest = [p.logprob for p in self.logprobs[1:]]
        return -sum(rest) / len(rest) if rest else None


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model."""

    name: str
    """What clients call it."""
    config: ModelConfig
    tokenizer: Tokenizer
    engine: Engine
    model: Any
    created: int
    """When, in seconds since 1970."""
    parameters: int
    kv: KVConfig | None = None
    """What its cache keeps where a request says nothing."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """Cache policies that were measured on it, and what came out, in words."""

    @cached_property
    def alphabet(self) -> str:
        """A digest of the tokenizer: a token id means the same to all models that have the same one."""
        return hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Token ids.

        Raises:
            TokenizerError: a character that the model does not know.
        """
        return self.tokenizer.encode(text).tolist()

    def policy(self, words: str) -> KVConfig | None:
        """The cache policy that these words ask for; without words the model's own."""
        return read_policy(words) if words else self.kv

    def piece(self, token: int) -> str:
        """What a token is called in an answer: its text, or its bytes where they are no text alone."""
        if token >= self.tokenizer.vocab_size:
            return f"<|{token}|>"
        data = self.tokenizer.decode_bytes([token])
        if not data:
            return next((name for name, special in self.tokenizer.special_tokens.items() if special == token), "")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def data(self, token: int) -> list[int]:
        """The bytes of a token."""
        return list(self.tokenizer.decode_bytes([token])) if token < self.tokenizer.vocab_size else []

    @property
    def start(self) -> list[int]:
        """What a text without a beginning begins with: the end of another, or a new line if the model knows one."""
        end = self.tokenizer.end_of_text
        if end is not None:
            return [end]
        try:
            return self.encode("\n")
        except TokenizerError:
            return [0]

    def cannot_speak(self, template: Template) -> str | None:
        """Why the roles of a dialogue cannot be written with this tokenizer; None if they can."""
        try:
            self.encode(template.system + template.turn("") + template.end)
        except TokenizerError as error:
            return str(error)
        return None


class Models:
    """All of them, by name. Everything but the look-up is the business of the thread that decodes.

    Args:
        rows: of each model's session.
        weights: ``fp32`` or ``int8``.
    """

    POLICY_ROWS = 4
    """Rows of a session of some other cache policy than the model's own."""

    def __init__(self, served: list[Served], *, rows: int, weights: Any = "fp32") -> None:
        self.served = {model.name: model for model in served}
        self._rows, self._weights = rows, weights
        self._scratch: dict[Key, Decoder] = {}

    def warm(self, say: Say = silent) -> dict[Key, Session]:
        """Make the session of every model and let it write a token, so that the first client waits for nothing.

        Raises:
            GenerateError: the logits of a model are not finite.
        """
        sessions: dict[Key, Session] = {}
        for name, model in self.served.items():
            sessions[name, ""] = session = self.session((name, ""), say)
            logits_V = session.decoder.prefill(0, np.array(model.start))
            if not np.isfinite(logits_V).all():
                raise GenerateError(f"the logits of {name} are not finite: its training diverged; serve another")
            session.decoder.truncate(0, 0)
        return sessions

    def session(self, key: Key, say: Say = silent) -> Session:
        """A new session.

        Raises:
            ConfigError: the policy cannot be, or not of this model.
        """
        name, policy = key
        rows = self.POLICY_ROWS if policy else self._rows
        return Session(self._decoder(key, rows, say), self.served[name].tokenizer)

    def read(self, key: Key, tokens: Sequence[int], *, top: int = 0) -> Reading:
        """A text as the model foresaw it, read as it would have been written.

        Args:
            top: how many of the likeliest tokens are told at each place.

        Raises:
            ConfigError: the policy cannot be, or not of this model.
            GenerateError: no text, or one longer than the model's block.
        """
        decoder = self._scratch.pop(key, None)
        if decoder is None:
            decoder = self._decoder(key, 1)
        self._scratch[key] = decoder  # the last one used stands last
        if len(self._scratch) > _SCRATCH:
            del self._scratch[next(iter(self._scratch))]
        served = self.served[key[0]]
        check_lengths(len(tokens), 1, decoder.block_size, "error", None)
        decoder.truncate(0, 0)
        ids = np.array(tokens)
        found = [LogProb(tokens[0], math.nan)]
        logits_V = np.empty(0, dtype=np.float32)
        began = time.perf_counter()
        for start in range(0, len(ids), _CHUNK):  # logits of a long text and a large vocabulary would fill the memory
            logits_TV = decoder.verify(0, ids[start : start + _CHUNK])[:, : served.tokenizer.vocab_size]
            for place, logits_V in enumerate(logits_TV, start + 1):
                if place < len(ids):
                    found.append(LogProb.of(logits_V, tokens[place], top))
        seconds = time.perf_counter() - began
        policy = served.policy(key[1])
        bits = decoder.bits()
        if policy is None or policy.is_plain:  # that decoder has memory for a whole block
            bits = full_bits_per_token(served.config) * len(tokens) + state_bits(served.config)
        return Reading(logprobs=found, next_V=logits_V.copy(), bits=bits, seconds=seconds)

    def maps(self, key: Key, tokens: Sequence[int]) -> np.ndarray:
        """What each token takes of each earlier one, (L, H, T, T).

        Raises:
            ConfigError: the model has no such attention, or cannot have this policy.
        """
        served = self.served[key[0]]
        return served.engine.attention_maps(served.model, np.array(tokens), served.policy(key[1]) or KVConfig())

    def _decoder(self, key: Key, rows: int, say: Say = silent) -> Decoder:
        model, kv = self.served[key[0]], self.served[key[0]].policy(key[1])
        return model.engine.decoder(model.model, rows=rows, weights=self._weights, say=say, kv=kv)
