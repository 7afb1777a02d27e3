"""Where the tokens come from: sources of text, toys, and tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bonsaigpt.config.base import Config

__all__ = [
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "CharTokenizerConfig",
    "DataConfig",
    "FilesData",
    "Gpt2TokenizerConfig",
    "ShakespeareData",
    "SortData",
    "StdlibData",
    "TextData",
    "TokenData",
    "TokenizerConfig",
    "UserPath",
    "ZeroOneData",
]

UserPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
"""A path in which ~ means the user's home."""


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


class TokenData(Config):
    """What every source of tokens on disk shares."""

    order: Literal["shuffled", "streams", "random"] = "shuffled"
    """Every window once an epoch; consecutive segments in each row; or nanoGPT's draw with replacement."""
    val_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the text that is held out for validation."""


class TextData(TokenData):
    """What every source of text shares."""

    tokenizer: TokenizerConfig = CharTokenizerConfig()
    split: Literal["auto", "hash", "tail"] = "auto"
    """Hold out whole documents by the hash of their content, or the tail of each; auto: hash from 20 documents on."""


class FilesData(TextData):
    """Any text file, or all text files below a folder."""

    kind: Literal["files"] = "files"
    """Where the tokens come from."""
    path: UserPath
    """A text file or a folder."""
    pattern: str = "**/*.txt"
    """Which files of a folder (glob)."""


class ShakespeareData(TextData):
    """Tiny Shakespeare, 1.1 MB, split as nanoGPT does: the last tenth validates."""

    kind: Literal["shakespeare"] = "shakespeare"
    """Where the tokens come from."""
    path: UserPath | None = None
    """The text if it is on this disk already; otherwise `bonsai prepare shakespeare --download` fetches it."""


class StdlibData(TextData):
    """The Python standard library's own source on this disk: real text that needs no network."""

    kind: Literal["stdlib"] = "stdlib"
    """Where the tokens come from."""
    path: UserPath | None = None
    """The folder of the library; none means the running Python's."""


class ZeroOneData(TokenData):
    """Sequences of independent symbols, 0 with probability 1/3 and 1 with 2/3: a loss floor known exactly."""

    kind: Literal["zero_one"] = "zero_one"
    """Where the tokens come from."""
    sequences: int = Field(default=10_000, ge=1)
    """Number of sequences."""
    length: int = Field(default=1_000, ge=2)
    """Symbols in a sequence."""
    p_zero: float = Field(default=1 / 3, gt=0.0, lt=1.0)
    """Probability of a 0."""


class SortData(Config):
    """minGPT's toy: read a list of digits, write it sorted. Made from (seed, step), held out by hash."""

    kind: Literal["sort"] = "sort"
    """Where the tokens come from."""
    vocab: int = Field(default=10, ge=2)
    """Number of different digits."""
    length: int = Field(default=6, ge=2)
    """Digits in a list."""
    val_examples: int = Field(default=10_000, ge=1)
    """Held-out lists that are sorted at each evaluation."""


DataConfig = Annotated[FilesData | ShakespeareData | StdlibData | ZeroOneData | SortData, Field(discriminator="kind")]
