"""What a model costs, counted from the spec.

The convention is that of PaLM (Chowdhery et al. 2022, appendix B): training takes 6 operations for each matrix
element and token (2 forward, 4 backward), and 12 K T for each head and token in the two products of attention over T
positions, the masked half included; under a window of W the T is at most W, and for linear attention, which can sum in
either order, at most K. A structured matrix counts as the multiply-adds of its cheapest order of application, and of
experts the active ones count alone. Look-ups, norms and the optimizer are not counted, nor is anything that is computed
twice to save memory: it is the work of the model, whatever the program does.
"""

from __future__ import annotations

from collections import Counter

from bonsaigpt.config import ModelConfig, SoftmaxAttention
from bonsaigpt.structure import Product, Structure, at_work

__all__ = ["ATTENTION_KINDS", "flops_by_kind", "flops_per_token", "matrix_parameters", "matrix_products"]

ATTENTION_KINDS = ("attention scores", "attention values")
"""The two products without a weight: q k^T, and the probabilities times v."""


def flops_per_token(config: ModelConfig, *, length: int | None = None) -> int:
    """Floating-point operations of training on one token of a context of ``length`` tokens (none: a full block)."""
    return sum(flops_by_kind(config, length=length).values())


def flops_by_kind(config: ModelConfig, *, length: int | None = None) -> dict[str, int]:
    """The same for each kind of matrix (``attn.c_attn``, ..., over all layers) and of attention; sums to the whole."""
    flops: Counter[str] = Counter()
    for kind, structure in _maps(config):
        flops[kind] += 6 * sum(product.macs for product in structure.products())
    keys = sum(_keys(config, layer, length or config.block_size) for layer in range(config.n_layer))
    turning = config.rope_width if config.attention.kind == "latent" else 0
    scores, values = (6 * config.n_head * width * keys for width in (config.head_width + turning, config.head_width))
    return flops | dict(zip(ATTENTION_KINDS, (scores, values), strict=True))


def _keys(config: ModelConfig, layer: int, length: int) -> int:
    """Keys that a query is multiplied with."""
    attention = config.attention
    if isinstance(attention, SoftmaxAttention):
        return min(length, attention.window_of(layer) or length)
    return min(length, config.head_width) if attention.kind == "linear" else length


def matrix_products(config: ModelConfig) -> dict[tuple[str, Product], int]:
    """How many products there are of each kind and size, in the order of the forward pass: one for a dense matrix, the
    steps of the cheapest order for a structured one."""
    return dict(Counter((kind, product) for kind, structure in _maps(config) for product in structure.products()))


def matrix_parameters(config: ModelConfig) -> int:
    """Stored values of all weights that a token is multiplied with: the head counts, look-ups do not, and neither do
    the experts of other tokens."""
    return sum(structure.parameters for _, structure in _maps(config))


def _maps(config: ModelConfig) -> list[tuple[str, Structure]]:
    """The kind and the structure of every weight that a token is multiplied with."""
    made = at_work(config)
    maps = [(_kind(name), structure) for name, structure in made.items() if not name.startswith("transformer.w")]
    return [*maps, ("lm_head", made["transformer.wte.weight"])] if config.tie_embeddings else maps


def _kind(name: str) -> str:
    """``transformer.h.3.attn.c_attn.weight`` is an ``attn.c_attn``."""
    words = name.removesuffix(".weight").split(".")
    return ".".join(words[3:] if words[:2] == ["transformer", "h"] else words)
