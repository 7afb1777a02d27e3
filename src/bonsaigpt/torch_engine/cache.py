"""Key/value caches in buffers of fixed size. The policies are described in ``bonsaigpt.kv``."""

from __future__ import annotations

import torch
from torch import Tensor

from bonsaigpt.config import ModelConfig
from bonsaigpt.errors import GenerateError
from bonsaigpt.kv import EMPTY

__all__ = ["FullCache"]


class FullCache:
    """Keeps every key (after RoPE) and value, in slots that fill from the left."""

    def __init__(
        self, config: ModelConfig, *, batch: int, slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, slots, config.head_width)
        self._k = torch.empty(shape, device=device, dtype=dtype)
        self._v = torch.empty(shape, device=device, dtype=dtype)
        self._positions = torch.full((config.n_layer, batch, slots), EMPTY, device=device, dtype=torch.int64)
        self._used = [0] * config.n_layer
        self.slots = slots

    @property
    def length(self) -> int:
        return self._used[-1]  # the last layer: inside a pass, the length before it

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = self._used[layer]
        end = start + k_BGTK.shape[2]
        if end > self.slots:
            raise GenerateError(f"the cache has {self.slots} slots, {end} are needed: shorten the text or slide")
        self._k[layer, :, :, start:end] = k_BGTK
        self._v[layer, :, :, start:end] = v_BGTK
        self._positions[layer, :, start:end] = positions_BT
        self._used[layer] = end
        return self._k[layer, :, :, :end], self._v[layer, :, :, :end], self._positions[layer, :, :end]

    def clear(self) -> None:
        """Forget everything; the buffers stay."""
        self._positions.fill_(EMPTY)
        self._used = [0] * len(self._used)

    def truncate(self, length: int) -> None:
        """Forget all but the first tokens."""
        self._used = [length] * len(self._used)

    def copy_from(self, other: FullCache) -> None:
        """Hold what another cache of the same shape holds."""
        end = other.length
        self._k[..., :end, :] = other._k[..., :end, :]
        self._v[..., :end, :] = other._v[..., :end, :]
        self._positions[..., :end] = other._positions[..., :end]
        self._used = list(other._used)

    def bits(self) -> int:
        return sum(8 * t.element_size() * t.numel() for t in (self._k, self._v, self._positions))
