"""The model's contract."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.spec import initial_value, parameter_count, parameters

VARIANTS = [
    {"mlp": {"kind": m}, "position": {"kind": p}, "norm": {"kind": n}, "bias": b, "tie_embeddings": t}
    for m, p, n, b, t in product(
        ["gelu", "swiglu", "relu2"], ["learned", "rope", "none"], ["layernorm", "rmsnorm"], [True, False], [True, False]
    )
]


def small(**changes: object) -> ModelConfig:
    """A small model."""
    settings = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 11} | changes
    return validate({"model": settings}, origin="test").model


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
def test_the_torch_model_has_exactly_the_parameters_of_the_spec(variant: dict) -> None:
    from bonsaigpt.torch_engine.model import GPT

    config = small(**variant, attention={"n_kv_head": 2})
    built = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    assert built == {p.name: p.shape for p in parameters(config) if p.tied_to is None}
    assert sum(math.prod(s) for s in built.values()) == parameter_count(config)


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    wide, deep = small(), small(n_layer=5)
    table = {p.name: p for p in parameters(wide)}
    name = "transformer.h.1.attn.c_attn.weight"
    first = initial_value(table[name], 1)
    other = {p.name: p for p in parameters(deep)}[name]
    assert np.array_equal(first, initial_value(other, 1))
    assert not np.array_equal(first, initial_value(table[name], 2))
    assert not np.array_equal(first, initial_value(table["transformer.h.0.attn.c_attn.weight"], 1))


def test_initial_scales_are_gpt2s() -> None:
    config = small(n_embd=128, n_layer=8, vocab_size=200)
    for p in parameters(config):
        if p.init != "normal":
            continue
        value = initial_value(p, 0)
        expected = 0.02 / math.sqrt(2 * 8) if p.name.endswith("c_proj.weight") else 0.02
        # The standard deviation of a sample of n has a relative error of 1 / sqrt(2 n): five of them.
        assert abs(value.std() / expected - 1) < 5 / math.sqrt(2 * value.size), p.name


def test_matrices_and_embeddings_decay_and_nothing_else() -> None:
    for p in parameters(small(bias=True)):
        assert p.decay == (len(p.shape) == 2), p.name
