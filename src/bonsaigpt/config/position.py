"""How a model knows where a token stands, and how rotary positions are scaled beyond the context of training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config

__all__ = [
    "LearnedPosition",
    "LinearScaling",
    "Llama3Scaling",
    "NTKScaling",
    "NoPosition",
    "NoScaling",
    "PositionConfig",
    "RopePosition",
    "RopeScaling",
    "YarnScaling",
]


class LearnedPosition(Config):
    """One trained vector for each position, added to the token's (GPT-2)."""

    kind: Literal["learned"] = "learned"
    """Which positions."""


class NoScaling(Config):
    """Angles as they are."""

    kind: Literal["none"] = "none"
    """Which scaling."""


class LinearScaling(Config):
    """Position interpolation (Chen et al. 2023): every position is divided by the factor."""

    kind: Literal["linear"] = "linear"
    """Which scaling."""
    factor: float = Field(default=1.0, ge=1.0)
    """How many times longer the context is than the one trained at."""


class NTKScaling(Config):
    """A larger base, so that the slowest pair turns as under interpolation and the fastest as before (bloc97 2023)."""

    kind: Literal["ntk"] = "ntk"
    """Which scaling."""
    factor: float = Field(default=1.0, ge=1.0)
    """How many times longer the context is than the one trained at."""


class YarnScaling(Config):
    """YaRN (Peng et al. 2023): pairs that turn often stay, slow ones are interpolated, and scores grow with the factor
    (sections 3.2 and 3.4)."""

    kind: Literal["yarn"] = "yarn"
    """Which scaling."""
    factor: float = Field(default=1.0, ge=1.0)
    """How many times longer the context is than the one trained at."""
    original: int = Field(default=64, ge=1)
    """The context trained at, in tokens."""
    fast: float = Field(default=32.0, gt=0.0)
    """Turns over that context from which on a pair stays as it is."""
    slow: float = Field(default=1.0, gt=0.0)
    """Turns over that context up to which a pair is interpolated in full; between the two, in part."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.slow >= self.fast:
            raise ValueError(
                f"YaRN's slow pairs turn less than its fast ones: scaling.slow = {self.slow} must be below "
                f"scaling.fast = {self.fast}"
            )
        return self


class Llama3Scaling(Config):
    """Llama 3.1's: slow pairs are interpolated and fast ones stay, as under YaRN, but with a ramp over the turns, and
    scores as they are."""

    kind: Literal["llama3"] = "llama3"
    """Which scaling."""
    factor: float = Field(default=1.0, ge=1.0)
    """How many times longer the context is than the one trained at."""
    original: int = Field(default=64, ge=1)
    """The context trained at, in tokens."""
    fast: float = Field(default=4.0, gt=0.0)
    """Turns over that context from which on a pair stays as it is."""
    slow: float = Field(default=1.0, gt=0.0)
    """Turns over that context up to which a pair is interpolated in full; between the two, in part."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.slow >= self.fast:
            raise ValueError(
                f"slow pairs turn less than fast ones: scaling.slow = {self.slow} must be below scaling.fast = "
                f"{self.fast}"
            )
        return self


RopeScaling = Annotated[
    NoScaling | LinearScaling | NTKScaling | YarnScaling | Llama3Scaling, Field(discriminator="kind")
]


class RopePosition(Config):
    """Rotary positions (Su et al. 2021): queries and keys are turned by angles that grow with the position."""

    kind: Literal["rope"] = "rope"
    """Which positions."""
    theta: float = Field(default=10000.0, gt=1.0)
    """Base of the wavelengths, in positions."""
    pairs: Literal["halves", "neighbours"] = "halves"
    """Which channels turn together: (i, i + K/2) as in GPT-NeoX and Hugging Face, or (2i, 2i + 1) as in the paper and
    GPT-J, which is much faster on a CPU."""
    scaling: RopeScaling = NoScaling()
    """What changes the angles for a context longer than the one trained at."""


class NoPosition(Config):
    """No positions at all: the causal mask alone tells the order (Kazemnejad et al. 2023)."""

    kind: Literal["none"] = "none"
    """Which positions."""


PositionConfig = Annotated[LearnedPosition | RopePosition | NoPosition, Field(discriminator="kind")]
