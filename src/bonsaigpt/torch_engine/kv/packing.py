"""Codes of few bits, side by side in bytes: what is held is what is counted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pack", "packed_bytes", "unpack"]

_TRITS = 5  # 3 ** 5 = 243 fit into a byte


def packed_bytes(count: int, levels: int) -> int:
    """Bytes of so many codes: a power of two of levels takes log2 bits each, in whole bytes of 8 codes where those do
    not divide a byte; three levels go five to a byte."""
    if levels == 3:
        return -(-count // _TRITS)
    bits = _bits(levels)
    return -(-count * bits // 8) if 8 % bits == 0 else -(-count // 8) * bits


def pack(codes: Tensor, levels: int) -> Tensor:
    """Codes (..., n) from 0 to ``levels`` - 1, uint8, as bytes (..., packed_bytes(n))."""
    if levels == 256:
        return codes
    if levels == 3:
        digits = _padded(codes, _TRITS).to(torch.int32)
        return (digits * _powers(codes)).sum(-1).to(torch.uint8)
    bits = _bits(levels)
    if 8 % bits == 0:
        parts = _padded(codes, 8 // bits)
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
        return (parts << shifts).sum(-1, dtype=torch.uint8)
    eight = _padded(codes, 8).long()  # eight codes are ``bits`` bytes
    word = (eight << (bits * torch.arange(8, device=codes.device))).sum(-1, keepdim=True)
    return (word >> (8 * torch.arange(bits, device=codes.device)) & 255).to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, levels: int, count: int) -> Tensor:
    """The first ``count`` codes of what ``pack`` gave, uint8."""
    if levels == 256:
        return packed
    if levels == 3:
        return ((packed[..., None].to(torch.int32) // _powers(packed)) % 3).flatten(-2)[..., :count].to(torch.uint8)
    bits = _bits(levels)
    if 8 % bits == 0:
        # Shifts by a number, which are several times as fast as by a tensor.
        parts = [packed >> shift & (levels - 1) for shift in range(0, 8, bits)]
        return torch.stack(parts, dim=-1).flatten(-2)[..., :count]
    parts = packed.unflatten(-1, (-1, bits)).long()
    word = (parts << (8 * torch.arange(bits, device=packed.device))).sum(-1, keepdim=True)
    eight = word >> (bits * torch.arange(8, device=packed.device)) & (levels - 1)
    return eight.flatten(-2)[..., :count].to(torch.uint8)


def _bits(levels: int) -> int:
    return (levels - 1).bit_length()


def _padded(codes: Tensor, multiple: int) -> Tensor:
    """(..., n) as (..., n / multiple rounded up, multiple)."""
    more = -codes.shape[-1] % multiple
    return (F.pad(codes, (0, more)) if more else codes).unflatten(-1, (-1, multiple))


def _powers(like: Tensor) -> Tensor:
    return 3 ** torch.arange(_TRITS, dtype=torch.int32, device=like.device)
