"""Sources of text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config, UserPath
from bonsaigpt.config.tokenizers import CharTokenizerConfig, TokenizerConfig

__all__ = [
    "SHARD_TOKENS",
    "CorpusData",
    "FilesData",
    "FinewebData",
    "FinewebEduData",
    "HubData",
    "HubText",
    "OpenWebTextData",
    "ReadingData",
    "ShakespeareData",
    "StdlibData",
    "TextData",
    "TinyStoriesData",
    "TokenData",
    "WikipediaData",
    "WikitextData",
]


SHARD_TOKENS = 1 << 27
"""Tokens of a shard: a quarter of a GB at 2 bytes each."""


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
    normalize: bool = False
    """Make the text uniform, whatever its language: Unicode NFC, line ends as \\n, no spaces at the ends of lines."""
    limit_mb: float | None = Field(default=None, gt=0.0)
    """Stop after this many MB (10^6 bytes) of the source: of files as they lie on the disk, of the hub's text."""

    dedup: bool = False
    """Drop documents whose text was there before, exactly."""
    shard_tokens: int = Field(default=SHARD_TOKENS, ge=1)
    """Tokens of a file of the corpus; another number makes other files, and so another corpus."""

    @property
    def is_remote(self) -> bool:
        """Whether the text must be fetched, so that only `bonsai prepare --download` can read it."""
        return False


class FilesData(TextData):
    """Text files of any kind: plain text, JSON lines or parquet, also compressed; or standard input."""

    kind: Literal["files"] = "files"
    """Where the tokens come from."""
    path: UserPath
    """A file, a folder, a glob in quotes, or - for standard input. Plain text, .jsonl and .json (an object a line),
    each also .gz .zst .bz2 .xz; .parquet."""
    pattern: str = "**/*.txt"
    """Which files of a folder: globs, separated by commas."""
    by: Literal["auto", "file", "line", "paragraph", "field"] = "auto"
    """What is a document: a file, a line, what stands between blank lines, or a field of a JSON line or parquet row.
    auto: a field of .jsonl, .json and .parquet, else a file."""
    field: str = "text"
    """Name of the field that holds the text."""


class ShakespeareData(TextData):
    """Tiny Shakespeare, 1.1 MB, split as nanoGPT does: the last tenth validates."""

    kind: Literal["shakespeare"] = "shakespeare"
    """Where the tokens come from."""
    path: UserPath | None = None
    """The text if it is on this disk already; otherwise `bonsai prepare shakespeare --download` fetches it."""

    @property
    def is_remote(self) -> bool:
        return self.path is None


class StdlibData(TextData):
    """The Python standard library's own source on this disk: real text that needs no network."""

    kind: Literal["stdlib"] = "stdlib"
    """Where the tokens come from."""
    path: UserPath | None = None
    """The folder of the library; none means the running Python's."""


class HubText(TextData):
    """What every data set of the Hugging Face hub shares. It is read as a stream; nothing but tokens is kept."""

    name: str
    """OWNER/NAME on the hub, or a folder of the same form on this disk."""
    config_name: str | None = None
    """Configuration (subset) of the data set; none means its default."""
    split_name: str = "train"
    """Which of the data set's own splits is read; `split` decides what of it validates."""
    field: str = "text"
    """Name of the field that holds the text."""
    revision: str | None = None
    """Branch, tag or commit; none means the newest at the time of the download."""

    @property
    def is_remote(self) -> bool:
        return not Path(self.name).is_dir()


class HubData(HubText):
    """Any data set of the Hugging Face hub that has a field of text."""

    kind: Literal["hub"] = "hub"
    """Where the tokens come from."""


class OpenWebTextData(HubText):
    """OpenWebText: 8 M pages that Reddit linked to, 40 GB (Gokaslan and Cohen 2019)."""

    kind: Literal["openwebtext"] = "openwebtext"
    """Where the tokens come from."""
    name: str = "Skylion007/openwebtext"
    """OWNER/NAME on the hub, or a folder of the same form on this disk."""


class FinewebData(HubText):
    """FineWeb: the web, cleaned; its sample of 10 G tokens (Penedo et al. 2024)."""

    kind: Literal["fineweb"] = "fineweb"
    """Where the tokens come from."""
    name: str = "HuggingFaceFW/fineweb"
    """OWNER/NAME on the hub, or a folder of the same form on this disk."""
    config_name: str | None = "sample-10BT"
    """Which sample or crawl of it, e.g. sample-100BT or CC-MAIN-2024-10."""


class FinewebEduData(HubText):
    """FineWeb-Edu: the pages of FineWeb that teach; its sample of 10 G tokens (Penedo et al. 2024)."""

    kind: Literal["fineweb_edu"] = "fineweb_edu"
    """Where the tokens come from."""
    name: str = "HuggingFaceFW/fineweb-edu"
    """OWNER/NAME on the hub, or a folder of the same form on this disk."""
    config_name: str | None = "sample-10BT"
    """Which sample or crawl of it, e.g. sample-100BT or CC-MAIN-2024-10."""


class TinyStoriesData(HubText):
    """TinyStories: 2 M short stories in a small child's words, 2 GB (Eldan and Li 2023)."""

    kind: Literal["tinystories"] = "tinystories"
    """Where the tokens come from."""
    name: str = "roneneldan/TinyStories"
    """OWNER/NAME on the hub, or a folder of the same form on this disk."""


class WikipediaData(HubText):
    """Wikipedia in any language: a dump on this disk, or the hub's prepared text."""

    kind: Literal["wikipedia"] = "wikipedia"
    """Where the tokens come from."""
    path: UserPath | None = None
    """A dump, LANGUAGEwiki-DATE-pages-articles.xml.bz2 (also multistream, .gz, .zst or plain), or a glob for one in
    several files; none means the hub's prepared text."""
    min_characters: int = Field(default=50, ge=0)
    """Articles of a dump with less text than this, in characters, are dropped."""
    name: str = "wikimedia/wikipedia"
    """OWNER/NAME on the hub, or a folder of the same form on this disk."""
    config_name: str | None = "20231101.en"
    """Of the hub's: date and language, e.g. 20231101.cs."""

    @property
    def is_remote(self) -> bool:
        return self.path is None and super().is_remote


class WikitextData(HubText):
    """WikiText-2 or -103: good articles of Wikipedia, one a document (Merity et al. 2016)."""

    kind: Literal["wikitext"] = "wikitext"
    """Where the tokens come from."""
    path: UserPath | None = None
    """A file of it on this disk, raw or tokenised, a folder or a glob; none means the hub's."""
    pattern: str = "**/*.txt, **/*.tokens, **/*.raw"
    """Which files of a folder: globs, separated by commas."""
    detokenize: bool = False
    """Undo the spaces around punctuation and the @-@ of its tokenisation, as far as they tell."""
    name: str = "Salesforce/wikitext"
    """OWNER/NAME on the hub, or a folder of the same form on this disk."""
    config_name: str | None = "wikitext-2-raw-v1"
    """Of the hub's: wikitext-2-raw-v1, wikitext-103-raw-v1, or without `raw` with <unk>."""

    @property
    def is_remote(self) -> bool:
        return self.path is None and super().is_remote
