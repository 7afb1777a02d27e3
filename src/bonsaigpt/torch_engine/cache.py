"""Key/value caches in buffers of fixed size. The policies are described in ``bonsaigpt.kv``."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from bonsaigpt.config import ModelConfig
from bonsaigpt.errors import GenerateError
from bonsaigpt.kv import EMPTY, state_shape

__all__ = ["FullCache"]


class FullCache:
    """Keeps every key (after RoPE) and value, in slots that fill from the left; of linear attention its state."""

    def __init__(
        self, config: ModelConfig, *, batch: int, slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        heads, key, value = config.kv_widths
        self._place = {layer: number for number, layer in enumerate(config.kv_layers)}
        room = (len(self._place), batch, heads, slots)
        self._k = torch.empty((*room, key), device=device, dtype=dtype)
        self._v = torch.empty((*room, value), device=device, dtype=dtype)
        self._positions = torch.full((len(self._place), batch, slots), EMPTY, device=device, dtype=torch.int64)
        self._states = torch.zeros((config.n_layer, batch, *state_shape(config)), device=device)
        self._used = [0] * config.n_layer
        self._last = max(self._place, default=config.n_layer - 1)
        self.slots = slots

    @property
    def length(self) -> int:
        return self._used[self._last]  # the last layer that is extended: inside a pass, the length before it

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place, start = self._place[layer], self._used[layer]
        end = self._count(layer, k_BGTK.shape[2])
        self._k[place, :, :, start:end] = k_BGTK
        self._v[place, :, :, start:end] = v_BGTK
        self._positions[place, :, start:end] = positions_BT
        return self._k[place, :, :, :end], self._v[place, :, :, :end], self._positions[place, :, :end]

    def recall(self, layer: int) -> Tensor:
        return self._states[layer]

    def remember(self, layer: int, state_BHKW: Tensor, tokens: int) -> None:
        self._count(layer, tokens)
        self._states[layer] = state_BHKW

    def _count(self, layer: int, tokens: int) -> int:
        end = self._used[layer] + tokens
        if end > self.slots:
            raise GenerateError(f"the cache has {self.slots} slots, {end} are needed: shorten the text or slide")
        self._used[layer] = end
        return end

    def repeated(self, count: int) -> FullCache:
        """A cache with each row so many times, one behind the other."""
        twin = copy(self)
        twin._k, twin._v, twin._positions, twin._states = (
            tensor.repeat_interleave(count, dim=1) for tensor in (self._k, self._v, self._positions, self._states)
        )
        twin._used = list(self._used)
        return twin

    def clear(self) -> None:
        """Forget everything; the buffers stay."""
        self._positions.fill_(EMPTY)
        self._states.zero_()
        self._used = [0] * len(self._used)

    def bits(self) -> int:
        return sum(8 * t.element_size() * t.numel() for t in (self._k, self._v, self._positions, self._states))
