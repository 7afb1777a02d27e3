"""Rotary positions (Su et al. 2021, RoFormer, equation 34): pair i of a head turns by position * theta^(-2i/K).

A pair is channels (i, i + K/2), as in GPT-NeoX, Hugging Face and their Llama, or the neighbours (2i, 2i + 1), as in the
paper and GPT-J; the two differ by a fixed order of the channels of queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotation_table"]


def rotation_table(positions: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, two (positions, K/2) float32 tensors, computed in float64."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * theta**-exponent
    return angles.cos().float(), angles.sin().float()
