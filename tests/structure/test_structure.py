"""What structures say of themselves: by hand, and against the matrices that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.config import (
    DoraStructure,
    KroneckerColumnsStructure,
    KroneckerStructure,
    LokrStructure,
    LoraStructure,
    LowRankStructure,
    ModelConfig,
    MonarchStructure,
    WeightStructure,
    validate,
)
from bonsaigpt.errors import ConfigError
from bonsaigpt.spec import initial_value, parameter_count, parameters
from bonsaigpt.structure import MATERIALISED, Kronecker, make, merge

SETTINGS: dict[str, WeightStructure] = {
    "kronecker": KroneckerStructure(a_shape=(6, 2), terms=3),
    "kronecker with scalers": KroneckerStructure(a_shape=(3, 4), terms=2, scalers=True),
    "vector factors": KroneckerStructure(a_shape=(24, 2), terms=1),
    "kronecker+sparse": KroneckerColumnsStructure(a_shape=(6, 2), terms=2, columns=(7, 1, 4)),
    "lowrank": LowRankStructure(rank=5),
    "monarch": MonarchStructure(a_shape=(6, 4), rank=2),
    "lora": LoraStructure(rank=3, alpha=6.0),
    "dora": DoraStructure(rank=2),
    "lokr": LokrStructure(a_shape=(6, 4), terms=2),
}
OUT, INTO = 24, 16


def values(setting: WeightStructure, seed: int = 0) -> dict[str, np.ndarray]:
    """Random factors of a (24, 16) weight, in float64."""
    random = np.random.default_rng(seed)
    return {f.name: random.standard_normal(f.shape) for f in make(setting, OUT, INTO).factors}


def test_kronecker_is_numpys() -> None:
    setting, factors = SETTINGS["kronecker with scalers"], values(SETTINGS["kronecker with scalers"])
    expected = sum(s * np.kron(A, B) for A, B, s in zip(factors["A"], factors["B"], factors["s"], strict=True))
    assert np.allclose(make(setting, OUT, INTO).expand(factors), expected, atol=1e-12)
    turned = sum(s * np.kron(B, A) for A, B, s in zip(factors["A"], factors["B"], factors["s"], strict=True))
    assert not np.allclose(expected, turned)


def test_monarch_is_two_block_diagonals_and_a_permutation() -> None:
    """W = L P R: R takes each block of inputs, P brings what belongs to one block of outputs together, L combines."""
    factors = values(SETTINGS["monarch"])
    L, R = factors["L"], factors["R"]
    n1, m2, r = 4, 4, 2
    right, left = np.zeros((n1 * m2 * r, INTO)), np.zeros((OUT, m2 * n1 * r))
    for j in range(n1):
        right[j * m2 * r : (j + 1) * m2 * r, j * 4 : (j + 1) * 4] = R[j]
    for i in range(m2):  # output (i1, i2) is row i1 * m2 + i2
        left[i::m2, i * n1 * r : (i + 1) * n1 * r] = L[i]
    order = [j * m2 * r + i * r + k for i in range(m2) for j in range(n1) for k in range(r)]
    assert np.allclose(make(SETTINGS["monarch"], OUT, INTO).expand(factors), left @ right[order], atol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
def test_rank_and_parameters_are_those_of_the_arrays(name: str) -> None:
    structure, factors = make(SETTINGS[name], OUT, INTO), values(SETTINGS[name])
    assert structure.parameters == sum(a.size for a in factors.values())
    assert np.linalg.matrix_rank(structure.expand(factors)) == structure.rank


def test_counts_by_hand() -> None:
    """GPT-2's MLP, 3072 x 768, as tabulated in the literature: parameters and multiply-adds over the dense ones."""
    table = {  # a_shape, terms: parameters / dense, B first / dense, A first / dense, highest rank
        ((768, 768), 1): (0.250, 1.001, 0.251, 768),
        ((3072, 384), 1): (0.500, 0.500, 1.003, 384),
        ((1024, 256), 4): (0.444, 1.337, 1.349, 768),
        ((8, 2), 1): (0.0625, 0.128, 0.503, 768),
    }
    for (a_shape, terms), (stored, b_first, a_first, rank) in table.items():
        found = make(KroneckerStructure(a_shape=a_shape, terms=terms), 3072, 768)
        dense = 3072 * 768
        assert found.parameters / dense == pytest.approx(stored, abs=6e-4)
        assert found.macs("B first") / dense == pytest.approx(b_first, abs=6e-4)
        assert found.macs("A first") / dense == pytest.approx(a_first, abs=6e-4)
        assert found.rank == rank
    seed = make(KroneckerStructure(a_shape=(1536, 32)), 1536, 384)
    assert seed.rank == 32  # a vector factor: all that is read is 32 numbers


def test_the_order_is_the_cheapest_for_the_batch() -> None:
    few, many = Kronecker(512, 128, (32, 8), 64, False), Kronecker(512, 128, (128, 128), 1, False)
    for structure in (few, many):
        for tokens in (1, 3, 10, 11, 12, 13, 100, 5000):
            costs = {order: tokens * structure.macs(order) for order in structure.orders}
            costs[MATERIALISED] = tokens * structure.macs(MATERIALISED) + structure.expansion
            assert costs[structure.best_order(tokens)] == min(costs.values())
    assert (few.best_order(1), few.best_order(4096)) == ("B first", MATERIALISED)
    assert many.best_order(4096) == "A first"


def test_the_seeds_own_case_has_its_parameters() -> None:
    """Kronecker GPT of the seed project: 10,745,088 parameters to 4,257,168."""
    structure = {
        "*.c_fc.weight": {"kind": "kronecker", "a_shape": [1536, 32]},
        "*.mlp.c_proj.weight": {"kind": "kronecker", "a_shape": [32, 1536]},
    }
    dense = validate({"model": {"preset": "baby", "vocab_size": 65}}, origin="t").model
    small = validate({"model": {"preset": "baby", "vocab_size": 65, "structure": structure}}, origin="t").model
    assert (parameter_count(dense), parameter_count(small)) == (10_745_088, 4_257_168)


def model(structure: dict, **changes: object) -> ModelConfig:
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 16, "vocab_size": 12}
    return validate({"model": sizes | {"structure": structure} | changes}, origin="test").model


def test_fresh_products_have_the_variance_of_a_dense_matrix() -> None:
    structure = {
        "*.c_attn.weight": {"kind": "kronecker", "a_shape": [16, 8], "terms": 20, "scalers": True},
        "*.attn.c_proj.weight": {"kind": "monarch", "a_shape": [8, 8], "rank": 2},
        "*.c_fc.weight": {"kind": "lowrank", "rank": 24},
        "*.mlp.c_proj.weight": {"kind": "kronecker+sparse", "a_shape": [8, 8], "terms": 16, "columns": [0, 3]},
    }
    for config in (model(structure), model(structure, mup_base=32)):
        dense = model({}, mup_base=config.mup_base)
        made = {p.name: initial_value(p, 1) for p in parameters(config) if p.tied_to is None}
        _, merged = merge(config, made)
        for p in parameters(dense):
            if p.role == "matrix":
                # Sums of products of normals: the deviation of the sample is a few times that of normals. 12 %.
                assert merged[p.name].std() == pytest.approx(p.std, rel=0.12), p.name
                assert abs(merged[p.name].mean()) < 0.1 * p.std
    zero = model(structure, residual_init="zero")
    made = {p.name: initial_value(p, 1) for p in parameters(zero) if p.tied_to is None}
    assert not merge(zero, made)[1]["transformer.h.0.attn.c_proj.weight"].any()
    assert made["transformer.h.0.attn.c_proj.weight.L"].any()  # of two zeros neither would get a gradient


def test_decay_of_the_product_is_that_of_a_dense_matrix() -> None:
    config = model({"*.c_fc.weight": {"kind": "kronecker", "a_shape": [16, 8], "terms": 2, "scalers": True}})
    shares = {p.name.rpartition(".")[2]: p.decay for p in parameters(config) if "0.mlp.c_fc" in p.name}
    assert shares == {"A": 0.5, "B": 0.5, "s": 0.0}


def test_merge_leaves_dense_values_and_narrow_mlps_as_they_are() -> None:
    config = model({"*.0.mlp": {"kind": "narrow", "hidden": 24}, "*.0.mlp.c_fc.weight": {"kind": "lowrank", "rank": 3}})
    made = {p.name: initial_value(p, 1) for p in parameters(config) if p.tied_to is None}
    plain, merged = merge(config, made)
    assert {p.name: p.shape for p in parameters(plain) if p.tied_to is None} == {n: a.shape for n, a in merged.items()}
    assert merged["transformer.h.0.mlp.c_proj.weight"] is made["transformer.h.0.mlp.c_proj.weight"]
    assert merged["transformer.h.0.mlp.c_fc.weight"].shape == (24, 64)
    assert merged["transformer.h.1.mlp.c_fc.weight"].shape == (256, 64)


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        (
            {"*.c_fc.wieght": {"kind": "lowrank", "rank": 2}},
            ["'*.c_fc.wieght'", "no weight", "mlp.c_fc.weight"],
        ),
        ({"*.c_fc.weight": {"kind": "narrow", "hidden": 2}}, ["matches no MLP", "transformer.h.0.mlp"]),
        (
            {"*.c_fc.weight": {"kind": "kronecker", "a_shape": [30, 8]}},
            ["30 does not divide its 256 outputs"],
        ),
        ({"*.c_fc.weight": {"kind": "monarch", "a_shape": [4, 5]}}, ["5 does not divide its 64 inputs", "32, 64"]),
        ({"*.c_fc.weight": {"kind": "kronecker", "a_shape": [2, 2], "terms": 5}}, ["use at most 4"]),
        ({"*.c_fc.weight": {"kind": "lowrank", "rank": 65}}, ["rank = 65", "64 can be any matrix"]),
        ({"*.c_fc.weight": {"kind": "lowrnk", "rank": 65}}, ["Did you mean 'lowrank'"]),
        ({"*.c_fc.weight": {"kind": "lowrank", "rnk": 65}}, ["rnk"]),
        ({"*.wte.weight": {"kind": "kronecker", "a_shape": [5, 8]}}, ["transformer.wte.weight of 12 x 64"]),
    ],
)
def test_what_cannot_be_is_one_sentence_with_the_remedy(structure: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        model(structure)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_match_wins_and_dense_exempts() -> None:
    config = model({"*.c_fc.weight": {"kind": "lowrank", "rank": 3}, "*.1.mlp.*": {"kind": "dense"}})
    names = [p.name for p in parameters(config) if ".c_fc." in p.name]
    assert names == [
        "transformer.h.0.mlp.c_fc.weight.U",
        "transformer.h.0.mlp.c_fc.weight.V",
        "transformer.h.1.mlp.c_fc.weight",
    ]
