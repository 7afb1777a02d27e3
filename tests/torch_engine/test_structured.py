"""Factored weights: every order of application is the dense matrix, forward and backward; models of them train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bonsaigpt.config import KroneckerStructure, ModelConfig, validate
from bonsaigpt.measure.accounting import flops_per_token
from bonsaigpt.spec import parameter_count, parameters
from bonsaigpt.structure import MATERIALISED, Structure, make, merge
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.loss import Learner, fused_head_loss
from bonsaigpt.torch_engine.model import GPT, build, weights
from bonsaigpt.torch_engine.structured import FactoredWeight, dense, new_weight
from tests.structure.test_structure import INTO, OUT, SETTINGS

CASES = [
    (name, order) for name, setting in SETTINGS.items() for order in [*make(setting, OUT, INTO).orders, MATERIALISED]
]


def filled(structure: Structure, seed: int = 0) -> FactoredWeight:
    weight = new_weight(structure)
    assert isinstance(weight, FactoredWeight)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in weight.parameters():
            p.copy_(torch.randn(p.shape, generator=random))
    return weight


def expanded(weight: FactoredWeight) -> torch.Tensor:
    """The definition, in NumPy and float64."""
    values = {n: p.detach().double().numpy() for n, p in weight.named_parameters()}
    return torch.from_numpy(weight.structure.expand(values))


@pytest.mark.parametrize(("name", "order"), CASES)
def test_factored_is_dense_forward_and_backward(name: str, order: str) -> None:
    """To 1e-5 of the largest value, in float32, against autograd through the float64 definition."""
    weight = filled(make(SETTINGS[name], OUT, INTO))
    weight.order = order
    random = torch.Generator().manual_seed(7)
    x = torch.randn(3, 5, INTO, generator=random, requires_grad=True)
    up = torch.randn(3, 5, OUT, generator=random)
    y = weight(x)
    got = torch.autograd.grad((y * up).sum(), [x, *weight.parameters()])

    exact = filled(make(SETTINGS[name], OUT, INTO)).double()
    x64 = x.detach().double().requires_grad_()
    y64 = F.linear(x64, exact.dense())
    assert torch.allclose(exact.dense(), expanded(weight), atol=1e-12)
    wanted = torch.autograd.grad((y64 * up.double()).sum(), [x64, *exact.parameters()])
    for a, b in zip([y, *got], [y64, *wanted], strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_the_comparison_sees_a_wrong_reshape() -> None:
    """Reading the input by columns, the classic slip, is another function of the same size."""
    weight = filled(make(SETTINGS["kronecker"], OUT, INTO))
    weight.order = "B first"
    x = torch.randn(4, INTO, generator=torch.Generator().manual_seed(0))
    wrong = x.reshape(4, 8, 2).transpose(1, 2).reshape(4, INTO)
    right = F.linear(x.double(), expanded(weight))
    assert (weight(x) - right).abs().max() < 1e-5 * right.abs().max()
    assert (weight(wrong) - right).abs().max() > 0.1 * right.abs().max()


@pytest.mark.parametrize(("name", "order"), CASES)
def test_operations_are_those_that_are_counted(name: str, order: str) -> None:
    structure = make(SETTINGS[name], OUT, INTO)
    weight, tokens = filled(structure), 6
    weight.order = order
    with FlopCounterMode(display=False) as counter:
        weight(torch.ones(tokens, INTO, requires_grad=True)).sum().backward()
    once = structure.expansion if order == MATERIALISED else 0
    lengths = 2 * structure.expansion if name == "dora" and order != MATERIALISED else 0  # they have no gradient
    assert counter.get_total_flops() == 6 * (tokens * structure.macs(order) + once) + lengths


def test_the_order_follows_the_batch() -> None:
    weight = filled(make(KroneckerStructure(a_shape=(6, 4), terms=4), OUT, INTO))
    used: list[str] = []
    weight.multiply = lambda x, order: used.append(order) or x.new_zeros(len(x), OUT)  # type: ignore[method-assign]
    weight.dense = lambda: used.append(MATERIALISED) or torch.zeros(OUT, INTO)  # type: ignore[method-assign]
    for tokens in (1, 4096):
        weight(torch.zeros(tokens, INTO))
    assert used == [weight.structure.best_order(1), weight.structure.best_order(4096)]
    assert used[0] != used[1]


STRUCTURE = {
    "*.c_attn.weight": {"kind": "monarch", "a_shape": [8, 4], "rank": 2},
    "*.attn.c_proj.weight": {"kind": "lowrank", "rank": 6},
    "*.c_fc.weight": {"kind": "kronecker", "a_shape": [16, 4], "terms": 3, "scalers": True},
    "*.mlp.c_proj.weight": {"kind": "kronecker+sparse", "a_shape": [4, 16], "terms": 3, "columns": [0, 5]},
    "transformer.wte.weight": {"kind": "kronecker", "a_shape": [5, 8], "terms": 4},
    "*.1.mlp": {"kind": "narrow", "hidden": 64},
}


def config(**changes: object) -> ModelConfig:
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 12, "vocab_size": 10, "bias": True}
    return validate({"model": sizes | {"structure": STRUCTURE} | changes}, origin="test").model


TOKENS = torch.randint(0, 10, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_has_the_parameters_of_the_spec_and_all_learn(tied: bool) -> None:
    small = config(tie_embeddings=tied)
    model = build(small, seed=3)
    built = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert built == {p.name: p.shape for p in parameters(small) if p.tied_to is None}
    assert sum(p.numel() for p in model.parameters()) == parameter_count(small)
    objective, _ = Learner(model)(TOKENS, TOKENS)
    objective.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, f"{name} gets no gradient"


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_checkpoint_is_the_same_function(tied: bool) -> None:
    small = config(tie_embeddings=tied)
    factored = build(small, seed=3).eval()
    plain, values = merge(small, weights(factored))
    assert not any(isinstance(m, FactoredWeight) for m in GPT(plain).modules())
    merged = build(plain, values=values).eval()
    torch.testing.assert_close(merged(TOKENS), factored(TOKENS), rtol=1e-5, atol=1e-6)
    values["transformer.h.1.mlp.c_fc.weight"] *= 1.5
    assert not torch.allclose(build(plain, values=values).eval()(TOKENS), factored(TOKENS), rtol=1e-5, atol=1e-6)


def test_for_decoding_what_costs_more_than_dense_is_merged_and_nothing_else() -> None:
    structure = {
        "*.c_fc.weight": {"kind": "kronecker", "a_shape": [16, 4], "terms": 20},  # 20 (1/16 + 1/8) of the dense work
        "*.mlp.c_proj.weight": {"kind": "kronecker", "a_shape": [32, 32]},
    }
    small = config(structure=structure)
    factored = build(small, seed=3).eval()
    model = TorchEngine(device="cpu", workers=1).model(small, weights(factored))
    assert isinstance(model.transformer.h[0].mlp.c_fc.weight, torch.nn.Parameter)
    assert isinstance(model.transformer.h[0].mlp.c_proj.weight, FactoredWeight)
    torch.testing.assert_close(model(TOKENS), factored(TOKENS), rtol=1e-5, atol=1e-6)


def test_a_factored_head_takes_the_fused_loss() -> None:
    model = build(config(), seed=3)
    hidden = model.hidden(TOKENS)
    whole = F.cross_entropy(model.logits(hidden).flatten(0, 1), TOKENS.flatten(), reduction="sum")
    _, chunked = fused_head_loss(hidden, dense(model.head_weight), TOKENS, vocabulary=10, whole=40)
    torch.testing.assert_close(whole, chunked)


def test_a_dense_setting_is_the_plain_model_bit_for_bit() -> None:
    plain, dense_ = config(structure={}), config(structure={"*": {"kind": "dense"}})
    a, b = build(plain, seed=1)(TOKENS), build(dense_, seed=1)(TOKENS)
    assert torch.equal(a, b)


def test_bf16_autocast_stays_near() -> None:
    model = build(config(), seed=3).eval()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(TOKENS)
    wide = model(TOKENS)
    # Each product rounds to 2^-9; a dozen of them in a row, and sums of up to 64 terms.
    assert (narrow.float() - wide).abs().max() < 0.05 * wide.abs().max()


def test_a_cached_pass_equals_the_whole() -> None:
    from bonsaigpt.torch_engine.cache import FullCache

    model = build(config(), seed=3).eval()
    cache = FullCache(model.config, batch=3, slots=12, device=torch.device("cpu"), dtype=torch.float32)
    with torch.inference_mode():
        parts = [model(TOKENS[:, i : i + n], cache=cache) for i, n in ((0, 7), (7, 1), (8, 4))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(TOKENS), rtol=1e-5, atol=1e-6)


def test_work_of_a_structured_model_by_hand() -> None:
    """A 4x smaller MLP, A first: each map takes a quarter of the dense one's work, and the row of four."""
    structure = {
        "*.c_fc.weight": {"kind": "kronecker", "a_shape": [32, 32]},
        "*.mlp.c_proj.weight": {"kind": "kronecker", "a_shape": [32, 32]},
    }
    small, plain = config(structure=structure), config(structure={})
    saved = 2 * 2 * (128 * 32 - (32 * 32 + 32 * 4))
    assert flops_per_token(plain) - flops_per_token(small) == 6 * saved


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # torch's own compiler uses it
def test_a_compiled_model_is_the_same() -> None:
    model = build(config(), seed=3)
    compiled = torch.compile(Learner(model), fullgraph=True)
    plain, _ = Learner(model)(TOKENS, TOKENS)
    plain.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fused, _ = compiled(TOKENS, TOKENS)
    fused.backward()
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-5)


def test_values_survive_numpy() -> None:
    arrays = weights(build(config(), seed=3))
    again = weights(build(config(), values=arrays))
    assert arrays.keys() == again.keys()
    assert all(np.array_equal(arrays[n], again[n]) for n in arrays)
