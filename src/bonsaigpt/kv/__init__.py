"""What a key/value cache may keep. The contract is engine-free; each engine has the buffers in its ``cache.py``.

A cache answers ``extend(layer, k, v, positions)``: it takes the keys and values of the new tokens and returns what
attention should see now, with the true position of every slot. Slots may come in any order, because the mask is
always computed from positions; an empty slot has position -1 and is never seen. ``bits()`` counts all that is held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from bonsaigpt.config import ModelConfig
from bonsaigpt.kv.text import read_policy, write_policy

__all__ = ["EMPTY", "AttendingCache", "KVCache", "full_bits_per_token", "read_policy", "write_policy"]

EMPTY = -1
"""Position of a slot that holds nothing."""


class KVCache(Protocol):
    """The contract; tensors are the engine's own."""

    @property
    def length(self) -> int:
        """Tokens seen so far: the position of the next one."""
        ...

    def extend(self, layer: int, k_BGTK: Any, v_BGTK: Any, positions_BT: Any) -> tuple[Any, Any, Any]:
        """Take the new tokens of one layer; return (k_BGSK, v_BGSK, positions_BS) to attend to.

        Keys are held as they come: after RoPE in the policy `full`.
        """
        ...

    def bits(self) -> int:
        """Bits of everything held, from the buffers' own sizes."""
        ...


class AttendingCache(ABC):
    """A cache that is asked for the attention itself: what it holds need not be keys after RoPE, and which tokens stay
    may depend on what the queries looked at."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens seen so far: the position of the next one."""

    @abstractmethod
    def attend(self, attention: Any, x_BTD: Any, qk_BTHK: Any, v_BTGK: Any) -> Any:
        """Attention of the new tokens of one layer to what is held and to themselves, (B, H, T, K); then take them in.

        Args:
            attention: the layer.
            x_BTD: its input.
            qk_BTHK: queries and keys of the new tokens, side by side, before RoPE.
        """

    @abstractmethod
    def bits(self) -> int:
        """Bits of everything held, from the buffers' own sizes."""


def full_bits_per_token(config: ModelConfig, *, bits: int = 32) -> int:
    """Bits that the policy `full` holds for one token of one row: keys, values, and a 64-bit position a layer."""
    return config.n_layer * (2 * config.n_kv_head * config.head_width * bits + 64)
