"""Numbers of a cache in few bits, coded and packed by the C++: one call instead of dozens of small operators."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from bonsaigpt.config import IntFormat, QuantizedFormat
from bonsaigpt.torch_engine.native.library import Codes, library

__all__ = ["NativeCodes", "has_codes"]


def has_codes(form: QuantizedFormat) -> TypeGuard[IntFormat]:
    """Whether the C++ has this format: whole numbers with scales for groups inside a token."""
    return isinstance(form, IntFormat) and form.axis == "token"


class NativeCodes:
    """Of a format that it has, bit for bit what its quantizer and ``pack`` give; on a CPU, in float32.

    Args:
        row_bytes: that the codes of a token of a head take.

    Raises:
        Missing: the library cannot be built here.
    """

    def __init__(self, form: IntFormat, width: int, row_bytes: int) -> None:
        self._library = library()
        self._form = Codes(width, form.group_of(width), row_bytes, form.bits, form.kind == "int8")

    def encode(self, x_BGTK: Tensor) -> tuple[Tensor, ...]:
        """Packed codes (B, G, T, row_bytes) uint8 and the scales of groups, (B, G, T, K / group) fp16 each."""
        form, shape = self._form, x_BGTK.shape[:-1]
        x_BGTK, packed = x_BGTK.contiguous(), torch.empty(*shape, form.row_bytes, dtype=torch.uint8)
        groups = *shape, form.width // form.group
        scales = [torch.empty(groups, dtype=torch.float16) for _ in range(1 if form.is_symmetric else 2)]
        where = x_BGTK.data_ptr(), packed.data_ptr(), *_pointers(scales)
        self._library.bonsai_encode(ctypes.byref(form), shape.numel(), *where)
        return packed, *scales

    def decode(self, packed: Tensor, *scales: Tensor) -> Tensor:
        """What they stand for, (B, G, T, K) float32."""
        form, shape = self._form, packed.shape[:-1]
        packed, scales = packed.contiguous(), tuple(s.contiguous() for s in scales)
        x_BGTK = torch.empty(*shape, form.width)
        where = packed.data_ptr(), *_pointers(scales), x_BGTK.data_ptr()
        self._library.bonsai_decode(ctypes.byref(form), shape.numel(), *where)
        return x_BGTK


def _pointers(scales: Sequence[Tensor]) -> tuple[int | None, int]:
    """Of the least numbers, if there are some, and of the steps."""
    return (scales[0].data_ptr() if len(scales) == 2 else None), scales[-1].data_ptr()
