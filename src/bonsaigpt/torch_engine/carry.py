"""Memory from batch to batch (Dai et al. 2019, Transformer-XL, section 3.2): what went before a row, without gradient.

Kept are either the keys and values of the last tokens, as they were computed, or the inputs of each attention, from
which keys and values are made anew with the weights of the day, as the paper has it. Where a row starts a text anew,
its memory is emptied: an empty slot has position -1, and the mask, which comes from positions, never shows it. Under
rotary positions only distances matter, so positions simply run on along a stream; absolute ones are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import MemoryConfig, ModelConfig
from bonsaigpt.errors import CheckpointError
from bonsaigpt.kv import EMPTY

__all__ = ["Carried", "Carry"]

_PREFIX = "memory."


class Carried:
    """The memory of all rows of a batch.

    Args:
        length: tokens of a row that are remembered.
    """

    def __init__(
        self, config: ModelConfig, memory: MemoryConfig, *, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        length = memory.tokens(config.block_size)
        heads, key, value = config.kv_widths
        layers, self.places = len(config.kv_layers), {layer: n for n, layer in enumerate(config.kv_layers)}
        shapes: dict[str, tuple[int, ...]] = {"x": (layers, rows, 1, length, config.n_embd)}
        if memory.kind == "kv":
            shapes = {"k": (layers, rows, heads, length, key), "v": (layers, rows, heads, length, value)}
        # Zeros: what is masked is still multiplied, by 0, and whatever memory holds might be no number.
        self.held = {name: torch.zeros(shape, device=device, dtype=dtype) for name, shape in shapes.items()}
        self.positions_BM = torch.full((rows, length), EMPTY, device=device)
        self.next_B = torch.zeros(rows, dtype=torch.int64, device=device)

    def begin(self, reset_B: np.ndarray | None) -> None:
        """A batch is about to come; these of its rows start anew."""
        if reset_B is not None:
            anew_B = torch.from_numpy(np.ascontiguousarray(reset_B)).to(self.next_B.device)
            self.positions_BM.masked_fill_(anew_B[:, None], EMPTY)
            self.next_B.masked_fill_(anew_B, 0)

    def of(self, rows: slice, tokens: int) -> Carry:
        """For one pass over these rows, which have so many new tokens."""
        return Carry(self, rows, tokens)

    def forget_unless(self, keep: Tensor) -> None:
        """Empty all of it where a step went wrong (``keep`` is 0): it may hold what is no number."""
        good = keep > 0
        self.positions_BM.copy_(torch.where(good, self.positions_BM, EMPTY))
        for buffer in self.held.values():
            buffer.copy_(torch.where(good, buffer, 0.0))

    def arrays(self) -> Arrays:
        """Everything, for a checkpoint."""
        return {_PREFIX + name: value.float().cpu().numpy().copy() for name, value in self.held.items()} | {
            _PREFIX + name: value.cpu().numpy().copy() for name, value in self._places().items()
        }

    def load(self, saved: Mapping[str, np.ndarray | Tensor]) -> None:
        """Put back what ``arrays`` gave; a state that was saved without a memory begins with an empty one.

        Raises:
            CheckpointError: it is of other sizes.
        """
        if not any(name.startswith(_PREFIX) for name in saved):
            return
        for name, buffer in (self.held | self._places()).items():
            value = saved.get(_PREFIX + name)
            if value is None or tuple(value.shape) != tuple(buffer.shape):
                raise CheckpointError(
                    f"the checkpoint's memory has no {name} of shape {tuple(buffer.shape)}: leave train.memory as it "
                    "was"
                )
            buffer.copy_(torch.as_tensor(value))

    def _places(self) -> dict[str, Tensor]:
        return {"positions": self.positions_BM, "next": self.next_B}


class Carry:
    """One pass over some rows: it reads the memory as it was and keeps what comes after for ``keep``, so that a pass
    may be computed again in between. To the model a ``KVCache``, or where inputs are remembered what comes before."""

    def __init__(self, carried: Carried, rows: slice, tokens: int) -> None:
        self._carried, self._rows = carried, rows
        self._after: dict[tuple[str, int], Tensor] = {}
        new_BT = carried.next_B[rows, None] + torch.arange(tokens, device=carried.next_B.device)
        self._new_BT, self._slots_BS = new_BT, torch.cat((carried.positions_BM[rows], new_BT), dim=1)
        self.has_inputs = "x" in carried.held
        """Whether inputs are remembered, and not keys and values."""
        self.positions_BS = self._slots_BS if self.has_inputs else new_BT
        """Of all tokens that are given to an attention: the new ones, and the remembered inputs."""

    @property
    def length(self) -> int:
        raise AssertionError("rows have positions of their own")

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._joined("k", layer, k_BGTK), self._joined("v", layer, v_BGTK), self._slots_BS

    def before(self, layer: int, x_BTD: Tensor) -> Tensor:
        """The remembered inputs of a layer, and the new ones behind them, (B, M + T, D)."""
        return self._joined("x", layer, x_BTD[:, None])[:, 0]

    def recall(self, layer: int) -> Tensor:
        raise AssertionError("linear attention carries no memory: the configuration refuses it")

    def remember(self, layer: int, state_BHKW: Tensor, tokens: int) -> None:
        raise AssertionError("linear attention carries no memory: the configuration refuses it")

    def bits(self) -> int:
        return sum(8 * t.element_size() * t.numel() for t in self._carried.held.values())

    def keep(self) -> None:
        """The pass is over: remember its end."""
        carried, rows = self._carried, self._rows
        for (name, place), value in self._after.items():
            carried.held[name][place, rows] = value.to(carried.held[name].dtype)
        carried.positions_BM[rows] = self._slots_BS[:, self._new_BT.shape[1] :]
        carried.next_B[rows] += self._new_BT.shape[1]

    def _joined(self, name: str, layer: int, new: Tensor) -> Tensor:
        place = self._carried.places[layer]
        held = self._carried.held[name][place, self._rows]
        both = torch.cat((held.to(new.dtype), new), dim=2)
        self._after[name, place] = both[:, :, new.shape[2] :].detach()
        return both
