"""Toys: synthetic tasks with a known optimum."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bonsaigpt.config.base import Config
from bonsaigpt.config.corpora import TokenData

__all__ = ["SortData", "ZeroOneData"]


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
