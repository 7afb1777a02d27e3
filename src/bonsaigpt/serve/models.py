"""The models that a server has, and the decoders that it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bonsaigpt.config import KVConfig, ModelConfig
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Decoder, Engine
from bonsaigpt.errors import GenerateError, TokenizerError
from bonsaigpt.generate import Session
from bonsaigpt.generate.dialogue import Template
from bonsaigpt.kv import read_policy
from bonsaigpt.progress import Say, silent

__all__ = ["Key", "Models", "Served"]

Key = tuple[str, str]
"""A model's name, and a cache policy in words; none of them are the server's own."""


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

    def encode(self, text: str) -> list[int]:
        """Token ids.

        Raises:
            TokenizerError: a character that the model does not know.
        """
        return self.tokenizer.encode(text).tolist()

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

    def read(self, key: Key, tokens: list[int]) -> tuple[np.ndarray, Decoder]:
        """Logits (T, V) after each token of a text, read as it would have been written, and the decoder that holds it.

        Raises:
            ConfigError: the policy cannot be, or not of this model.
            GenerateError: the text is longer than the model's block, or no text.
        """
        if key not in self._scratch:
            if len(self._scratch) >= 8:
                del self._scratch[next(iter(self._scratch))]
            self._scratch[key] = self._decoder(key, 1)
        decoder = self._scratch[key]
        decoder.truncate(0, 0)
        vocab_size = self.served[key[0]].tokenizer.vocab_size
        return decoder.verify(0, np.array(tokens))[:, :vocab_size], decoder

    def _decoder(self, key: Key, rows: int, say: Say = silent) -> Decoder:
        name, policy = key
        model = self.served[name]
        kv = read_policy(policy) if policy else model.kv
        return model.engine.decoder(model.model, rows=rows, weights=self._weights, say=say, kv=kv)
