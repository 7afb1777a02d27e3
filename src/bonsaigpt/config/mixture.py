"""Several corpora in given proportions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config
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
from bonsaigpt.config.toys import ZeroOneData

__all__ = ["Corpora", "MixtureData", "MixturePart"]

Corpora = (
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
    | ZeroOneData
)
"""All that is on the disk as tokens, or comes there."""


class MixturePart(Config):
    """One corpus of a mixture."""

    weight: float = Field(gt=0.0)
    """How many samples come from it, against the weights of the other parts; 3 and 1 are the same as 0.75 and 0.25."""
    name: str = ""
    """What reports call it; empty: its number and kind."""
    data: Annotated[Corpora, Field(discriminator="kind")]
    """The corpus, with an order of its own."""


class MixtureData(Config):
    """Several corpora over one tokenizer, each sample from one of them, in exact proportions."""

    kind: Literal["mixture"] = "mixture"
    """Where the tokens come from."""
    parts: tuple[MixturePart, ...] = Field(min_length=1)
    """The corpora: in a recipe one [[data.parts]] each, as a flag a JSON list of {"weight": ..., "data": {...}}."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(part.data.order == "streams" for part in self.parts):
            raise ValueError("a part of a mixture cannot have order = 'streams', whose rows go on from step to step")
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(f"two parts of the mixture have one name ({', '.join(names)}): give each its own")
        return self

    @property
    def names(self) -> list[str]:
        """What reports call the parts."""
        return [part.name or f"{number} {part.data.kind}" for number, part in enumerate(self.parts, 1)]

    @property
    def document_mask(self) -> bool:
        """Whether batches carry a mask: one part with it suffices."""
        return any(part.data.document_mask for part in self.parts)
