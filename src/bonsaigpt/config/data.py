"""Where the tokens come from: one of all sources of text and toys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bonsaigpt.config.corpora import (
    CorpusData,
    FilesData,
    FinewebData,
    FinewebEduData,
    HubData,
    OpenWebTextData,
    ShakespeareData,
    StdlibData,
    TinyStoriesData,
    WikipediaData,
    WikitextData,
)
from bonsaigpt.config.mixture import MixtureData
from bonsaigpt.config.toys import AddData, CopyData, RecallData, SortData, ZeroOneData

__all__ = ["DataConfig"]

DataConfig = Annotated[
    FilesData
    | ShakespeareData
    | StdlibData
    | HubData
    | WikipediaData
    | WikitextData
    | TinyStoriesData
    | OpenWebTextData
    | FinewebData
    | FinewebEduData
    | CorpusData
    | MixtureData
    | ZeroOneData
    | SortData
    | AddData
    | CopyData
    | RecallData,
    Field(discriminator="kind"),
]
