"""What a model costs, counted from the spec.

The convention is that of PaLM (Chowdhery et al. 2022, appendix B): training takes 6 operations for each matrix
element and token (2 forward, 4 backward), and 12 K T for each head and token in the two products of attention over T
positions, the masked half included. Look-ups, norms and the optimizer are not counted, nor is anything that is computed
twice to save memory: it is the work of the model, whatever the program does.
"""

from __future__ import annotations

from collections import Counter

from bonsaigpt.config import ModelConfig
from bonsaigpt.spec import Param, parameters

__all__ = ["ATTENTION_KINDS", "flops_by_kind", "flops_per_token", "matrix_kinds", "matrix_parameters"]

ATTENTION_KINDS = ("attention scores", "attention values")
"""The two products without a weight: q k^T, and the probabilities times v."""


def flops_per_token(config: ModelConfig, *, length: int | None = None) -> int:
    """Floating-point operations of training on one token of a context of ``length`` tokens (none: a full block)."""
    return sum(flops_by_kind(config, length=length).values())


def flops_by_kind(config: ModelConfig, *, length: int | None = None) -> dict[str, int]:
    """The same for each kind of matrix (``attn.c_attn``, ..., over all layers) and of attention; sums to the whole."""
    flops: Counter[str] = Counter()
    for (kind, out, into), count in matrix_kinds(config).items():
        flops[kind] += 6 * out * into * count
    one = 6 * config.n_layer * config.n_head * config.head_width * (length or config.block_size)
    return flops | dict.fromkeys(ATTENTION_KINDS, one)


def matrix_kinds(config: ModelConfig) -> dict[tuple[str, int, int], int]:
    """How many matrices there are of each (kind, outputs, inputs), in the order of the forward pass."""
    return dict(Counter((_kind(p.name), p.shape[0], p.shape[1]) for p in _matrices(config)))


def matrix_parameters(config: ModelConfig) -> int:
    """Elements of all matrices that a token is multiplied with: the head counts, look-ups do not."""
    return sum(p.size for p in _matrices(config))


def _matrices(config: ModelConfig) -> list[Param]:
    return [p for p in parameters(config) if len(p.shape) == 2 and not p.lookup]


def _kind(name: str) -> str:
    """``transformer.h.3.attn.c_attn.weight`` is an ``attn.c_attn``."""
    words = name.removesuffix(".weight").split(".")
    return ".".join(words[3:] if words[:2] == ["transformer", "h"] else words)
