"""Where the tokens come from: one of all sources of text, examples, and toys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bonsaigpt.config.examples import ExamplesData, PairsData
from bonsaigpt.config.mixture import Corpora, MixtureData
from bonsaigpt.config.toys import AddData, CopyData, RecallData, SortData

__all__ = ["DataConfig", "PreparedData"]

PreparedData = Corpora | MixtureData
"""What `bonsai prepare` makes."""
DataConfig = Annotated[
    PreparedData | ExamplesData | PairsData | SortData | AddData | CopyData | RecallData,
    Field(discriminator="kind"),
]
