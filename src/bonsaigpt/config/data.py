"""Where the tokens come from: one of all sources of text and toys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bonsaigpt.config.corpora import CorpusData, FilesData, ShakespeareData, StdlibData
from bonsaigpt.config.mixture import MixtureData
from bonsaigpt.config.toys import AddData, CopyData, RecallData, SortData, ZeroOneData

__all__ = ["DataConfig"]

DataConfig = Annotated[
    FilesData
    | ShakespeareData
    | StdlibData
    | CorpusData
    | MixtureData
    | ZeroOneData
    | SortData
    | AddData
    | CopyData
    | RecallData,
    Field(discriminator="kind"),
]
