"""Sources of text."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config, UserPath
from bonsaigpt.config.tokenizers import CharTokenizerConfig, TokenizerConfig

__all__ = ["CorpusData", "FilesData", "ReadingData", "ShakespeareData", "StdlibData", "TextData", "TokenData"]


class ReadingData(Config):
    """How tokens on disk are read."""

    order: Literal["shuffled", "streams", "random", "packed"] = "shuffled"
    """Every window once an epoch; consecutive segments in each row; nanoGPT's draw with replacement; or rows filled
    with whole documents, each row once an epoch."""
    document_mask: bool = False
    """Let a token attend to its own document alone, where several share a row; positions start anew with each."""

    @model_validator(mode="after")
    def _check_mask(self) -> Self:
        if self.document_mask and self.order == "streams":
            raise ValueError(
                "data.document_mask cuts rows into documents, and data.order = 'streams' reads on across them: use "
                "'shuffled', 'packed' or 'random', or no mask"
            )
        return self


class CorpusData(ReadingData):
    """Tokens that `bonsai prepare` has made, without their text: a corpus' folder, here or on another machine."""

    kind: Literal["corpus"] = "corpus"
    """Where the tokens come from."""
    path: str
    """The folder with corpus.json, or its address for fsspec: s3://, gs://, hf://, https://. A remote one is fetched
    into the folder of corpora, checked by the hashes of its corpus.json, and kept."""


class TokenData(ReadingData):
    """What every source of tokens shares that are made here."""

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
