"""Numbers in groups to codes and scales, and back. Scales are rounded to fp16 first, and codes are made for the rounded
ones, so what is decoded is as near as the codes allow. Everything saturates; nothing becomes infinite."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bonsaigpt.config import Float8Format, IntFormat, QuantizedFormat, SignFormat, TernaryFormat

__all__ = ["Quantizer", "hadamard", "narrow", "quantizer"]

_LARGEST = 65504.0
"""Of fp16."""


class Quantizer(Protocol):
    """A way to code groups (..., g) of float32 numbers."""

    levels: int
    """Different codes."""
    scales: int
    """fp16 numbers for each group."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Codes (..., g) uint8 and the scales, (...,) fp16 each."""
        ...

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        """What the codes stand for, (..., g) float32."""
        ...


def quantizer(form: QuantizedFormat) -> Quantizer:
    """The one that a format means."""
    match form:
        case IntFormat(kind="int8"):
            return _Symmetric()
        case IntFormat():
            return _Range(form.bits)
        case Float8Format():
            return _Float8(form)
        case TernaryFormat():
            return _Ternary()
        case SignFormat():
            return _Sign()
        case _:
            raise AssertionError(form)


def narrow(x: Tensor) -> Tensor:
    """In 16 bits: fp16, clamped; what has 16 bits already stays."""
    return x if x.element_size() <= 2 else x.clamp(-_LARGEST, _LARGEST).to(torch.float16)


def hadamard(width: int) -> Tensor:
    """An orthogonal, symmetric matrix (width, width) whose entries have one size, float32; block-diagonal where the
    width is no power of two (Sylvester 1867)."""
    block = width & -width  # the largest power of two that divides it
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return torch.block_diag(*[matrix / block**0.5] * (width // block))


def _half(x: Tensor) -> Tensor:
    return x.clamp(-_LARGEST, _LARGEST).to(torch.float16)


def _divisor(scale: Tensor) -> Tensor:
    """A scale to divide by: 0, of a group of zeros, becomes 1."""
    wide = scale.float()
    return torch.where(wide == 0, 1.0, wide)[..., None]


class _Symmetric:
    levels, scales = 256, 1

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = _half(x.abs().amax(-1) / 127)
        return ((x / _divisor(scale)).round().clamp(-127, 127) + 127).to(torch.uint8), scale

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        return (codes.float() - 127) * scales[0].float()[..., None]


class _Range:
    """Equal steps from the least number to the largest."""

    scales = 2

    def __init__(self, bits: int) -> None:
        self.levels = 2**bits

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        low, high = x.aminmax(dim=-1)
        least = _half(low)
        step = _half((high - least.float()) / (self.levels - 1))
        codes = ((x - least.float()[..., None]) / _divisor(step)).round().clamp(0, self.levels - 1)
        return codes.to(torch.uint8), least, step

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        least, step = scales
        return codes.float().mul_(step.float()[..., None]).add_(least.float()[..., None])


class _Float8:
    levels = 256

    def __init__(self, form: Float8Format) -> None:
        self._type = torch.float8_e4m3fn if form.kind == "e4m3" else torch.float8_e5m2
        self._most = torch.finfo(self._type).max
        self.scales = int(form.group is not None)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.scales:
            return (self._cast(x),)
        scale = _half(x.abs().amax(-1) / self._most)
        return self._cast(x / _divisor(scale)), scale

    def _cast(self, x: Tensor) -> Tensor:
        return x.clamp(-self._most, self._most).to(self._type).view(torch.uint8)  # the cast itself need not saturate

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        x = codes.contiguous().view(self._type).float()
        return x * scales[0].float()[..., None] if scales else x


class _Ternary:
    levels, scales = 3, 2

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        mean = _half(x.mean(-1))
        rest = x - mean.float()[..., None]
        size = rest.abs()
        large = size > 0.7 * size.mean(-1, keepdim=True)
        scale = _half((size * large).sum(-1) / large.sum(-1).clamp_min(1))
        return (rest.sign() * large + 1).to(torch.uint8), mean, scale

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        mean, scale = scales
        return (codes.float() - 1) * scale.float()[..., None] + mean.float()[..., None]


class _Sign:
    levels, scales = 2, 2

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        mean = _half(x.mean(-1))
        rest = x - mean.float()[..., None]
        return (rest >= 0).to(torch.uint8), mean, _half(rest.abs().mean(-1))

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        mean, scale = scales
        return (codes.float() * 2 - 1) * scale.float()[..., None] + mean.float()[..., None]
