"""What a key/value cache may keep. The contract is engine-free; each engine has the buffers in its ``cache.py``.

A cache answers ``extend(layer, k, v, positions)``: it takes the keys and values of the new tokens and returns what
attention should see now, with the true position of every slot. Slots may come in any order, because the mask is
always computed from positions; an empty slot has position -1 and is never seen. ``bits()`` counts all that is held.

Only the layers in ``config.kv_layers`` are ever extended: others read the keys and values of one of those. Linear
attention has no keys to keep; its layers ``recall`` and ``remember`` a state of fixed size instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol

from bonsaigpt.config import LinearAttention, ModelConfig
from bonsaigpt.kv.text import read_policy, write_policy

__all__ = [
    "EMPTY",
    "AttendingCache",
    "KVCache",
    "full_bits_per_token",
    "read_policy",
    "state_bits",
    "state_shape",
    "write_policy",
]

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

        Keys are held as they come: after RoPE in the policy `full`. Heads and widths are ``config.kv_widths``.
        """
        ...

    def recall(self, layer: int) -> Any:
        """The state of one layer of linear attention, (B, *state_shape), zeros at the start; not to be written to."""
        ...

    def remember(self, layer: int, state_BHKW: Any, tokens: int) -> None:
        """Take the state after so many more tokens."""
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

    turns: bool = True
    """Whether it turns queries and keys by itself, where positions are rotary."""

    @abstractmethod
    def attend(self, attention: Any, x_BTD: Any, where: Any, shared: Any) -> tuple[Any, Any]:
        """Attention of the new tokens of one layer to what is held and to themselves, (B, H, T, K), and the keys and
        values that it looked at, for layers that share them; then take the new tokens in.

        Args:
            attention: the layer.
            x_BTD: its input.
            where: where the tokens stand.
            shared: what the layer looked at whose keys and values this one reads, if it has none of its own.
        """

    @abstractmethod
    def bits(self) -> int:
        """Bits of everything held, from the buffers' own sizes."""


def full_bits_per_token(config: ModelConfig, *, bits: int = 32) -> int:
    """Bits that the policy `full` holds for one token of one row: keys, values, and a 64-bit position a layer."""
    heads, key, value = config.kv_widths
    return len(config.kv_layers) * (heads * (key + value) * bits + 64)


def state_shape(config: ModelConfig) -> tuple[int, int, int]:
    """What a layer of linear attention holds of one row, (H, K, W): for each head the sums of k v^T, and where results
    are divided by the sum of their weights the sums of k as one more column. Of no width elsewhere."""
    if not isinstance(config.attention, LinearAttention):
        return 0, 0, 0
    return config.n_head, config.head_width, config.head_width + (config.attention.form == "elu")


def state_bits(config: ModelConfig, *, bits: int = 32) -> int:
    """Bits of the states of all layers of one row, however long it is."""
    return config.n_layer * math.prod(state_shape(config)) * bits
