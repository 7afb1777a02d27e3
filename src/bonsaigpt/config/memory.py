"""What is carried from one batch of order `streams` to the next."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bonsaigpt.config.base import Config
from bonsaigpt.config.model import ModelConfig

__all__ = ["HiddenMemory", "KeyValueMemory", "MemoryConfig", "NoMemory", "memory_flaw"]


class NoMemory(Config):
    """Each row is read without what stood before it."""

    kind: Literal["none"] = "none"
    """Which memory."""

    def tokens(self, block_size: int) -> int:
        """Tokens that are remembered."""
        return 0


class KeyValueMemory(Config):
    """The keys and values of the last tokens, as they were computed; no gradient goes into them."""

    kind: Literal["kv"] = "kv"
    """Which memory."""
    length: int | None = Field(default=None, ge=1)
    """Tokens that are remembered; none means a block."""

    def tokens(self, block_size: int) -> int:
        """Tokens that are remembered."""
        return self.length or block_size


class HiddenMemory(Config):
    """The inputs of each attention at the last tokens, from which keys and values are made anew (Dai et al. 2019): half
    of what keys and values take, and never of older weights."""

    kind: Literal["hidden"] = "hidden"
    """Which memory."""
    length: int | None = Field(default=None, ge=1)
    """Tokens that are remembered; none means a block."""

    def tokens(self, block_size: int) -> int:
        """Tokens that are remembered."""
        return self.length or block_size


MemoryConfig = Annotated[NoMemory | KeyValueMemory | HiddenMemory, Field(discriminator="kind")]


def memory_flaw(memory: MemoryConfig, model: ModelConfig) -> str | None:
    """In words why a model cannot have such a memory, or None."""
    attention = model.attention.kind
    if model.position.kind == "learned":
        return "a memory needs positions that are distances: use model.position.kind = 'rope', or 'none'"
    if attention == "linear" or (attention == "latent" and memory.kind == "hidden"):
        use = "no memory" if attention == "linear" else "kv"
        return f"a memory of kind '{memory.kind}' does not go with model.attention.kind = '{attention}': use {use}"
    return None
