"""How text becomes token ids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bonsaigpt.config.base import Config, UserPath

__all__ = [
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "CharTokenizerConfig",
    "Gpt2TokenizerConfig",
    "TokenizerConfig",
]


class CharTokenizerConfig(Config):
    """One token for each distinct character of the training text."""

    kind: Literal["chars"] = "chars"
    """Which tokenizer."""


class ByteTokenizerConfig(Config):
    """One token for each byte of UTF-8, plus one end-of-text token: 257, and no text is ever unknown."""

    kind: Literal["bytes"] = "bytes"
    """Which tokenizer."""


class BpeTokenizerConfig(Config):
    """Byte-level byte-pair encoding, trained on the training text."""

    kind: Literal["bpe"] = "bpe"
    """Which tokenizer."""
    vocab_size: int = Field(default=1024, ge=257)
    """Size of the vocabulary: 256 bytes, the end-of-text token, and merges."""


class Gpt2TokenizerConfig(Config):
    """GPT-2's byte-pair encoding (50,257 tokens), from its own two files or a tokenizer.json."""

    kind: Literal["gpt2"] = "gpt2"
    """Which tokenizer."""
    path: UserPath
    """Folder with encoder.json and vocab.bpe (or vocab.json and merges.txt), or a tokenizer.json."""


TokenizerConfig = Annotated[
    CharTokenizerConfig | ByteTokenizerConfig | BpeTokenizerConfig | Gpt2TokenizerConfig,
    Field(discriminator="kind"),
]
