"""Toys: synthetic tasks with a known optimum."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config
from bonsaigpt.config.corpora import TokenData

__all__ = ["AddData", "CopyData", "RecallData", "SortData", "TaskData", "ZeroOneData"]


class ZeroOneData(TokenData):
    """Sequences of symbols 0 and 1, independent or of a Markov chain: a loss floor known exactly."""

    kind: Literal["zero_one"] = "zero_one"
    """Where the tokens come from."""
    sequences: int = Field(default=10_000, ge=1)
    """Number of sequences."""
    length: int = Field(default=1_000, ge=2)
    """Symbols in a sequence."""
    p_zero: float = Field(default=1 / 3, gt=0.0, lt=1.0)
    """Probability of a 0, where each symbol is independent of all others."""
    p_zero_after: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()
    """Makes a Markov chain of order k: 2^k probabilities of a 0, one after each string of k symbols, in their order as
    binary numbers, the newest symbol last. [0.9, 0.2] is of order 1: 0.9 after a 0, 0.2 after a 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        states = len(self.p_zero_after)
        if states == 1 or states & (states - 1) or states > 1024:
            near = max(2, min(1024, 2 ** round(math.log2(states))))
            raise ValueError(
                f"data.p_zero_after has {states} probabilities, but a chain of order k has 2^k (k from 1 to 10): give "
                f"e.g. {near}"
            )
        return self


class TaskData(Config):
    """What the toys with an answer share: problems are made from (seed, step), and held out by their hash."""

    val_examples: int = Field(default=10_000, ge=1)
    """Held-out problems that are solved at each evaluation."""
    shortest: ClassVar[str]
    """How the shortest block follows from the settings, for messages."""

    @property
    def row(self) -> int:
        """Tokens of a problem with its answer; the model reads all but the last."""
        raise NotImplementedError

    @property
    def size(self) -> str:
        """The settings that make it so long, in words."""
        raise NotImplementedError


class SortData(TaskData):
    """minGPT's toy: read a list of digits, write it sorted. Made from (seed, step), held out by hash."""

    kind: Literal["sort"] = "sort"
    """Where the tokens come from."""
    vocab: int = Field(default=10, ge=2)
    """Number of different digits."""
    length: int = Field(default=6, ge=2)
    """Digits in a list."""
    shortest: ClassVar[str] = "2 * data.length - 1"

    @property
    def row(self) -> int:
        return 2 * self.length

    @property
    def size(self) -> str:
        return f"sort {self.length} digits"


class AddData(TaskData):
    """Add two numbers of n decimal digits. Made from (seed, step), held out by hash."""

    kind: Literal["add"] = "add"
    """Where the tokens come from."""
    digits: int = Field(default=3, ge=1, le=18)
    """Digits of each number, zeros in front included."""
    reverse: bool = True
    """Write the sum from its last digit on, as one adds by hand; much easier to learn (Lee et al. 2023)."""
    shortest: ClassVar[str] = "3 * data.digits + 2"

    @property
    def row(self) -> int:
        return 3 * self.digits + 3

    @property
    def size(self) -> str:
        return f"add {self.digits}-digit numbers"


class CopyData(TaskData):
    """Read a string and a mark, write the string again. Made from (seed, step), held out by hash."""

    kind: Literal["copy"] = "copy"
    """Where the tokens come from."""
    vocab: int = Field(default=16, ge=2)
    """Number of different symbols, the mark not counted."""
    length: int = Field(default=16, ge=1)
    """Symbols in a string."""
    shortest: ClassVar[str] = "2 * data.length"

    @property
    def row(self) -> int:
        return 2 * self.length + 1

    @property
    def size(self) -> str:
        return f"copy {self.length} symbols"


class RecallData(TaskData):
    """Read pairs of key and value, then filler, then keys again: answer each with its value (Arora et al. 2023)."""

    kind: Literal["recall"] = "recall"
    """Where the tokens come from."""
    keys: int = Field(default=16, ge=1)
    """Number of different keys."""
    values: int = Field(default=16, ge=1)
    """Number of different values."""
    pairs: int = Field(default=4, ge=1)
    """Pairs in a row; all its keys differ, and all its values."""
    gap: int = Field(default=0, ge=0)
    """Filler between the pairs and the queries, tokens."""
    queries: int = Field(default=4, ge=1)
    """Keys that are asked for, all different."""
    shortest: ClassVar[str] = "2 * data.pairs + data.gap + 2 * data.queries - 1"

    @model_validator(mode="after")
    def _check(self) -> Self:
        most = min(self.keys, self.values)
        if self.pairs > most:
            raise ValueError(
                f"data.pairs = {self.pairs} needs as many different keys and values, and data.keys and data.values are "
                f"{self.keys} and {self.values}: use at most {most} pairs"
            )
        if self.queries > self.pairs:
            raise ValueError(
                f"data.queries = {self.queries} asks for more keys than data.pairs = {self.pairs}: use at most that"
            )
        return self

    @property
    def row(self) -> int:
        return 2 * self.pairs + self.gap + 2 * self.queries

    @property
    def size(self) -> str:
        return f"recall {self.queries} of {self.pairs} pairs over a gap of {self.gap}"
