"""The GPT as pure functions: embeddings, blocks, head. Loss, optimizer, schedule and sampling are elsewhere.

Parameters are nested dictionaries, ``params["transformer"]["h"]["0"]["attn"]["c_attn"]["weight"]``, whose dotted paths,
shapes and orientation are the spec's; a factored weight is one node of them (structured.py). What is tied is stored
once and read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bonsaigpt.config import ModelConfig, RopePosition
from bonsaigpt.jax_engine.attention import Kept, Seen, Where, attention, causal_mask, document_mask, masks
from bonsaigpt.jax_engine.linear import dropout, linear, norm
from bonsaigpt.jax_engine.linear_attention import linear_attention
from bonsaigpt.jax_engine.mlp import mlp
from bonsaigpt.jax_engine.rope import rotation
from bonsaigpt.jax_engine.structured import Factored, Weight, dense
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.structure import structures

__all__ = [
    "Model",
    "Params",
    "Past",
    "flat",
    "forward",
    "head_weight",
    "hidden",
    "init",
    "logits",
    "narrowed",
    "nested",
]

Params: TypeAlias = dict[str, Any]
See: TypeAlias = Callable[[str, Array], Array]
"""Is shown an activation by its name, and gives it back."""


@dataclass(frozen=True)
class Model:
    """What evaluates and generates: a configuration and its parameters."""

    config: ModelConfig
    params: Params


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a pass with a cache goes on from; lives while a function is traced. See cache.py."""

    kept: tuple[Kept | None, ...]
    """Of each layer; None where it reads another's keys and values."""
    start_B: Array
    """Tokens that each row holds: the position of its next one."""
    real_BT: Array
    """Which of the new tokens are no padding; padding follows them."""
    seen: int
    """A bound on all positions of the pass: so many slots are looked at."""


def init(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters, a function of the seed alone; equal to PyTorch's in every bit."""
    return nested(config, {p.name: initial_value(p, seed) for p in parameters(config) if p.tied_to is None})


def nested(config: ModelConfig, values: Mapping[str, Any]) -> Params:
    """The tree of values by their dotted names; every parameter must be named once."""
    if wrong := values.keys() ^ {p.name for p in parameters(config) if p.tied_to is None}:
        raise ValueError(f"these parameters are missing or too many: {sorted(wrong)}")
    made = {name: structure for name, structure in structures(config).items() if structure.factored}
    tree: Params = {}
    for name, value in values.items():
        *path, leaf = name.split(".")
        place: Any = tree
        for i, part in enumerate(path):
            structure = made.get(".".join(path[: i + 1]))
            empty = {} if structure is None else Factored({}, structure)
            place = place.setdefault(part, empty)
            place = place.factors if isinstance(place, Factored) else place
        place[leaf] = value
    return tree


def flat(params: Params) -> dict[str, Any]:
    """The inverse of ``nested``; in no order, as JAX sorts the keys of dictionaries."""
    return dict(_leaves("", params))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    children = node.factors if isinstance(node, Factored) else node
    if not isinstance(children, dict):
        yield prefix, node
        return
    for name, child in children.items():
        yield from _leaves(f"{prefix}.{name}" if prefix else name, child)


def narrowed(params: Params, dtype: Any) -> Params:
    """The parameters with all matrices in the number format of the products; vectors stay wide."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def head_weight(config: ModelConfig, params: Params) -> Weight:
    """The matrix from the last hidden state to the logits, (V, D)."""
    return params["transformer"]["wte"]["weight"] if config.tie_embeddings else params["lm_head"]["weight"]


def hidden(
    config: ModelConfig,
    params: Params,
    tokens_BT: Array,
    *,
    documents_BT: Array | None = None,
    key: Array | None = None,
    past: Past | None = None,
    recompute: bool = False,
    fused: bool = False,
    seen: dict[str, Array] | None = None,
) -> tuple[Array, tuple[Kept | None, ...]]:
    """The normalised last hidden state, (B, T, D), and what the layers keep from now on.

    Args:
        documents_BT: the document of each token, numbered upwards along a row; attention stays inside it and its
            positions start at 0.
        key: of dropout; none means no dropout.
        past: what the rows hold already. Positions go on from there.
        recompute: keep only the input of each block for the backward pass (Chen et al. 2016).
        fused: attend by cuDNN's kernel where it can do it.
        seen: takes the activations, (B, T, D), by the names of PyTorch's modules; not together with ``recompute``.
    """

    def see(name: str, x_BTD: Array) -> Array:
        if seen is not None:
            seen[f"transformer.{name}"] = x_BTD
        return x_BTD

    body, T = params["transformer"], tokens_BT.shape[1]
    positions_BT, mask_BTT = jnp.arange(T)[None], None
    if documents_BT is not None:
        mask_BTT = document_mask(documents_BT)
        positions_BT = mask_BTT.sum(axis=-1) - 1  # how many of its document stand before
    if past is not None:
        positions_BT = past.start_B[:, None] + jnp.arange(T)
    wte = dense(body["wte"]["weight"])
    x_BTD = wte[tokens_BT].astype(jnp.promote_types(wte.dtype, jnp.float32))
    turned = None
    if config.position.kind == "learned":
        x_BTD = x_BTD + dense(body["wpe"]["weight"]).at[positions_BT].get(mode="clip").astype(x_BTD.dtype)
    elif isinstance(config.position, RopePosition):
        cos, sin = map(jnp.asarray, rotation(config.position, config.rope_width, config.block_size))
        cos, sin = (table.at[positions_BT].get(mode="clip")[:, :, None] for table in (cos, sin))
        turned = (cos, sin)
    if past is None:
        where = Where(masks=masks(config, T, mask_BTT), rotation=turned, fused=fused)
    else:
        windows = masks(config, config.block_size, None)
        looked = {window: causal_mask(positions_BT, past.seen, window) for window in windows}
        where = Where(masks=looked, rotation=turned, start_B=past.start_B, real_BT=past.real_BT, seen=past.seen)
    keys = [None] * (config.n_layer + 1) if key is None else list(jax.random.split(key, config.n_layer + 1))
    x_BTD = see("embedded", dropout(x_BTD, config.dropout, keys[-1]))
    shared: Seen | None = None
    kept = (None,) * config.n_layer if past is None else past.kept
    after: list[Kept | None] = []
    for layer in range(config.n_layer):

        def block(params: Params, x_BTD: Array, shared: Seen | None, key: Array | None, layer: int = layer) -> Any:
            within: See = lambda name, x_BTD: see(f"h.{layer}.{name}", x_BTD)  # noqa: E731
            return _block(config, layer, params, x_BTD, where, kept[layer], shared, key, within)

        block = jax.checkpoint(block) if recompute else block
        x_BTD, keeps, shared = block(body["h"][str(layer)], x_BTD, shared, keys[layer])
        see(f"h.{layer}", x_BTD)
        after.append(keeps)
    return see("ln_f", norm(config, body.get("ln_f", {}), x_BTD)), tuple(after)


def _block(
    config: ModelConfig,
    layer: int,
    params: Params,
    x_BTD: Array,
    where: Where,
    kept: Kept | None,
    shared: Seen | None,
    key: Array | None,
    see: See,
) -> tuple[Array, Kept | None, Seen | None]:
    """Attention and MLP, each a branch beside the residual stream; ``see`` is shown what they make."""
    of_shares, of_attention, of_mlp = (None,) * 3 if key is None else jax.random.split(key, 3)
    ln_1, ln_2 = params.get("ln_1", {}), params.get("ln_2", {})

    def attended(x_BTD: Array) -> tuple[Array, Kept | None, Seen | None]:
        if config.attention.kind == "linear":
            y_BTD, keeps = linear_attention(config, params["attn"], x_BTD, where, kept=kept)
            seen = None
        else:
            y_BTD, keeps, seen = attention(
                config, layer, params["attn"], x_BTD, where, kept=kept, shared=shared, key=of_shares
            )
        return dropout(see("attn", y_BTD), config.dropout, of_attention), keeps, seen

    def thought(x_BTD: Array) -> Array:
        return dropout(see("mlp", mlp(config, params["mlp"], x_BTD)), config.dropout, of_mlp)

    if config.norm_position == "post":  # GPT-1, Vaswani et al. 2017
        y_BTD, keeps, seen = attended(x_BTD)
        x_BTD = see("ln_1", norm(config, ln_1, x_BTD + y_BTD))
        return see("ln_2", norm(config, ln_2, x_BTD + thought(x_BTD))), keeps, seen
    y_BTD, keeps, seen = attended(see("ln_1", norm(config, ln_1, x_BTD)))
    x_BTD = x_BTD + y_BTD
    return x_BTD + thought(see("ln_2", norm(config, ln_2, x_BTD))), keeps, seen


def logits(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """From the last hidden state (..., D) to logits (..., V): padding cut off, muP's multiplier, soft cap."""
    if config.mup_base is not None:
        hidden = hidden / config.width_ratio
    found = linear(hidden, head_weight(config, params))[..., : config.vocabulary]
    if config.logit_softcap:  # Gemma Team 2024, section 2
        found = config.logit_softcap * jnp.tanh(found / config.logit_softcap)
    return found


def forward(config: ModelConfig, params: Params, tokens_BT: Array, **how: Any) -> Array:
    """Logits of the next token at every position, (B, T, V); see ``hidden``."""
    return logits(config, params, hidden(config, params, tokens_BT, **how)[0])
