"""Sources of text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bonsaigpt.config.base import Config, UserPath
from bonsaigpt.config.tokenizers import CharTokenizerConfig, TokenizerConfig

__all__ = ["FilesData", "ShakespeareData", "StdlibData", "TextData", "TokenData"]


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
    dedup: bool = False
    """Drop documents whose text was there before, exactly."""
    shard_tokens: int = Field(default=1 << 27, ge=1)
    """Tokens of a file of the corpus; another number makes other files, and so another corpus."""


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
