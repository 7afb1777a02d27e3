"""What a model costs, counted from the spec."""

from __future__ import annotations

from bonsaigpt.config import ModelConfig
from bonsaigpt.spec import parameters

__all__ = ["flops_per_token", "matrix_parameters"]


def matrix_parameters(config: ModelConfig) -> int:
    """Elements of all matrices that a token is multiplied with: the head counts, look-ups do not."""
    return sum(p.size for p in parameters(config) if len(p.shape) == 2 and not p.lookup)


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of training on one token of a full block.

    Chowdhery et al. 2022 (PaLM), appendix B: 6 for each matrix element (2 forward, 4 backward), and 12 L H K T for
    the two products of attention over T positions, the masked half included.
    """
    attention = 12 * config.n_layer * config.n_head * config.head_width * config.block_size
    return 6 * matrix_parameters(config) + attention
