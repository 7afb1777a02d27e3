"""Rotary positions (Su et al. 2021, RoFormer, equation 34): channels (i, i + K/2) turn by position * theta^(-2i/K).

The pairing of halves, not of neighbours, is the one of GPT-NeoX, Llama and Hugging Face.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotate", "rotation_table"]


def rotation_table(positions: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, two (positions, K/2) float32 tensors, computed in float64."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * theta**-exponent
    return angles.cos().float(), angles.sin().float()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head by the angles of its position; cos and sin are (T, K/2) or (B, 1, T, K/2)."""
    low, high = x_BHTK.chunk(2, dim=-1)
    cos, sin = cos.to(x_BHTK.dtype), sin.to(x_BHTK.dtype)
    return torch.cat((low * cos - high * sin, low * sin + high * cos), dim=-1)
