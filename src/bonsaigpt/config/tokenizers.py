"""How text becomes token ids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config, UserPath

__all__ = [
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "CharTokenizerConfig",
    "FileTokenizerConfig",
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
    """Size of the vocabulary: 256 bytes, the end-of-text token, special tokens, and merges."""
    split: Literal["gpt2", "gpt4"] = "gpt2"
    """How text is split before merges: as GPT-2 does, or as GPT-4 (digits by threes, line breaks with punctuation)."""
    special: tuple[str, ...] = ()
    """Further tokens that no text is encoded to, e.g. ["<|user|>"]."""
    train_bytes: int = Field(default=100_000_000, ge=0)
    """Bytes of text after which it has learned enough; 0: all."""

    @model_validator(mode="after")
    def _room(self) -> BpeTokenizerConfig:
        if self.vocab_size < (least := 257 + len(self.special)):
            raise ValueError(
                f"vocab_size = {self.vocab_size} has no room for 256 bytes, the end-of-text token and "
                f"{len(self.special)} special tokens: set it to at least {least}, and merges come on top"
            )
        return self


class Gpt2TokenizerConfig(Config):
    """GPT-2's own byte-pair encoding (50,257 tokens)."""

    kind: Literal["gpt2"] = "gpt2"
    """Which tokenizer."""
    path: UserPath
    """Folder with encoder.json and vocab.bpe (or vocab.json and merges.txt), or GPT-2's tokenizer.json."""


class FileTokenizerConfig(Config):
    """One that exists: of a run or corpus, of `bonsai tokenizer train`, or a byte-level one of Hugging Face."""

    kind: Literal["file"] = "file"
    """Which tokenizer."""
    path: UserPath
    """A tokenizer.json, or the folder of a run, a corpus or a model that has one."""


TokenizerConfig = Annotated[
    CharTokenizerConfig | ByteTokenizerConfig | BpeTokenizerConfig | Gpt2TokenizerConfig | FileTokenizerConfig,
    Field(discriminator="kind"),
]
