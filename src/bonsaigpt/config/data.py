"""Where the tokens come from: one of all sources of text and toys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bonsaigpt.config.corpora import FilesData, ShakespeareData, StdlibData
from bonsaigpt.config.toys import SortData, ZeroOneData

__all__ = ["DataConfig"]

DataConfig = Annotated[FilesData | ShakespeareData | StdlibData | ZeroOneData | SortData, Field(discriminator="kind")]
