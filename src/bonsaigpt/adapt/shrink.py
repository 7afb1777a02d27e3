"""A smaller cache for a trained model: fewer key/value heads, layers that share them, keys and values that are coded.

Heads that become one are averaged (Ainslie et al. 2023, section 2.1); layers that come to share read the keys and
values of the first of them (Brandon et al. 2024), and what the others made of their own is left out. Where the heads
were alike nothing changes; elsewhere some steps have to mend it. The optimizer's moments go the way of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bonsaigpt.adapt.training import trained_on
from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, RunConfig, SoftmaxAttention, validate
from bonsaigpt.errors import ConfigError
from bonsaigpt.structure import structures

__all__ = ["shrunk_arrays", "shrunk_config", "shrunk_model"]


def shrunk_model(model: ModelConfig, *, n_kv_head: int | None = None, share_kv: int | None = None) -> ModelConfig:
    """The model with fewer heads of keys and values, or with layers that share them.

    Raises:
        ConfigError: it has no more than so few, or no such heads at all; or its maps are made of factors.
    """
    attention = model.attention
    if n_kv_head is None and share_kv is None:
        return model
    if not isinstance(attention, SoftmaxAttention):
        raise ConfigError(
            f"model.attention.kind = '{attention.kind}' has no heads of keys and values that could become fewer: leave "
            "--n-kv-head and --share-kv out"
        )
    if n_kv_head is not None and (n_kv_head >= model.n_kv_head or model.n_kv_head % n_kv_head):
        fewer = [n for n in range(1, model.n_kv_head) if model.n_kv_head % n == 0]
        raise ConfigError(
            f"--n-kv-head {n_kv_head}: the model has {model.n_kv_head} heads of keys and values, which can become "
            + (f"{' or '.join(map(str, fewer))}" if fewer else "no fewer: leave it out")
        )
    if share_kv is not None and (share_kv <= attention.share_kv or share_kv % attention.share_kv):
        raise ConfigError(
            f"--share-kv {share_kv}: {attention.share_kv} neighbouring layers read the same keys and values already: "
            f"give a multiple, e.g. {2 * attention.share_kv}"
        )
    if share_kv is not None and share_kv > model.n_layer:
        raise ConfigError(f"--share-kv {share_kv}: the model has {model.n_layer} layers: use that at most")
    made = structures(model)
    for name, structure in made.items():
        if name.endswith(".attn.c_attn.weight") and structure.factored:
            raise ConfigError(f"{name} is made of factors, whose rows cannot be averaged: merge it first")
    changes = {"n_kv_head": n_kv_head, "share_kv": share_kv}
    data = model.model_dump(exclude_none=True, exclude={"preset"})
    data["attention"] |= {name: value for name, value in changes.items() if value is not None}
    return validate({"model": data}, origin="the shrunk model").model


def shrunk_config(
    config: RunConfig,
    *,
    n_kv_head: int | None = None,
    share_kv: int | None = None,
    kv: str = "",
    steps: int = 300,
    share: float = 0.5,
) -> RunConfig:
    """The run that goes on from a run's weights with the smaller cache, for so many steps; see ``trained_on``.

    Args:
        kv: what the cache will keep, ``train.kv``; empty: as the run has it.
    """
    model = shrunk_model(config.model, n_kv_head=n_kv_head, share_kv=share_kv)
    train = {"kv": kv} if kv else {}
    return trained_on(config, model=model, steps=steps, share=share, train=train)


def shrunk_arrays(arrays: Arrays, old: ModelConfig, new: ModelConfig) -> Arrays:
    """Weights, or an optimizer's state, for the smaller cache: of each group of heads the mean of the rows that make
    keys, and of those that make values; none, and no norm of keys, in layers that read another's. All else stays."""
    rows = dict(_rows(old, new))
    without = tuple(f"transformer.h.{n}.attn.k_norm" for n in range(new.n_layer) if new.kv_source(n) != n)
    found: Arrays = {}
    for name, value in arrays.items():
        if name.endswith(without):
            continue
        layer = next((layer for layer in rows if f"transformer.h.{layer}.attn.c_attn." in name), None)
        found[name] = value if layer is None else _pooled(value, rows[layer], old, new)
    return found


def _rows(old: ModelConfig, new: ModelConfig) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Of each layer whose map changes the outputs that queries, keys and values take in the new one."""
    for layer in range(new.n_layer):
        if old.attention_maps(layer) != new.attention_maps(layer):
            yield layer, new.attention_maps(layer)


def _pooled(value: np.ndarray, maps: tuple[int, ...], old: ModelConfig, new: ModelConfig) -> np.ndarray:
    """Rows (queries, keys, values) of a matrix, a bias, or a moment of one of them."""
    queries = maps[0]
    kept = [value[:queries]]
    if len(maps) > 1:
        for part in np.split(value[queries:], 2):
            heads = part.reshape(new.n_kv_head, old.n_kv_head // new.n_kv_head, new.head_width, *value.shape[1:])
            kept.append(heads.mean(1).reshape(-1, *value.shape[1:]).astype(value.dtype))
    return np.concatenate(kept)
