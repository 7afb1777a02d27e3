"""Experts: what blocks compute is what one token after the other gives; dense MLPs become experts without a change; and
what is stored, met, balanced and dead is counted as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bonsaigpt.compress.upcycle import upcycle
from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import ConfigError
from bonsaigpt.measure.accounting import flops_by_kind, flops_per_token, matrix_parameters
from bonsaigpt.measure.health import Health, Monitor, look_for
from bonsaigpt.spec import parameter_count
from bonsaigpt.structure import merge
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.experts import Experts, blocks, unevenness
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import GPT, build, weights
from bonsaigpt.torch_engine.structured import FactoredWeight, dense

SHARED = {
    "*.c_fc.weight": {"kind": "kronecker", "a_shape": [16, 4], "terms": 3},
    "*.0.mlp.c_proj.weight": {"kind": "kronecker", "a_shape": [4, 16], "terms": 3},
    "*.1.mlp.c_proj.weight": {"kind": "lowrank", "rank": 5},
}
TOKENS = torch.randint(0, 10, (3, 12), generator=torch.Generator().manual_seed(1))


def settings(**changes: Any) -> dict[str, Any]:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 10, "bias": True}
    return {"model": sizes | changes}


def config(**changes: Any) -> ModelConfig:
    return validate(settings(**changes), origin="test").model


def experts(kind: str = "relu2", active: int = 2, **changes: Any) -> ModelConfig:
    return config(mlp={"kind": "moe", "experts": 4, "active": active, "each": {"kind": kind, "hidden": 32}}, **changes)


def lively(model_config: ModelConfig) -> GPT:
    """In float64, weights of size 0.3, so that tokens differ in their experts."""
    model, random = build(model_config, seed=0).double(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=p.dtype) * 0.3)
    return model


def one_by_one(mlp: Experts, x_ND: Tensor) -> Tensor:
    """The definition: each token through its experts, one after the other."""
    rows = [dense(mlp.c_fc.weight).chunk(4), mlp.c_fc.bias.chunk(4)]  # type: ignore[union-attr]
    columns, outputs = dense(mlp.c_proj.weight).chunk(4, dim=1), []
    gates = dense(mlp.c_gate.weight).chunk(4) if mlp.kind == "swiglu" else None
    for x in x_ND:
        probabilities = F.linear(x, dense(mlp.router.weight)).softmax(dim=0)
        chosen = probabilities.argsort(descending=True)[: mlp.active].tolist()
        whole, y = probabilities[chosen].sum().item(), mlp.c_proj.bias
        for e in chosen:
            h = F.linear(x, rows[0][e], rows[1][e])
            if gates is None:
                h = h.relu().square()
            else:
                assert mlp.c_gate.bias is not None
                h = F.silu(F.linear(x, gates[e], mlp.c_gate.bias.chunk(4)[e])) * h
            y = y + probabilities[e] / whole * F.linear(h, columns[e])
        outputs.append(y)
    return torch.stack(outputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("active", [1, 2, 4])
@pytest.mark.parametrize("kind", ["relu2", "swiglu"])
@pytest.mark.parametrize("structure", [{}, SHARED], ids=["dense", "shared"])
def test_blocks_are_the_definition_forward_and_backward(kind: str, active: int, structure: dict[str, Any]) -> None:
    """To rounding in float64; probabilities are float32, 1e-6 of a share."""
    mlp = lively(experts(kind, active, structure=structure)).transformer.h[0].mlp
    assert isinstance(mlp, Experts)
    random = torch.Generator().manual_seed(3)
    x = torch.randn(2, 37, 16, generator=random, dtype=torch.float64, requires_grad=True)
    up = torch.randn(2, 37, 16, generator=random, dtype=torch.float64)
    inputs = [x, *mlp.parameters()]
    y, wanted = mlp(x), one_by_one(mlp, x.flatten(0, 1)).view(2, 37, 16)
    got = torch.autograd.grad((y * up).sum(), inputs)
    meant = torch.autograd.grad((wanted * up).sum(), inputs)
    for a, b in zip([y, *got], [wanted, *meant], strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    if active < 4:  # the control: one expert more is another function
        mlp.active += 1
        assert (mlp(x) - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 200])
@pytest.mark.parametrize("spread", ["even", "one", "none of the first"])
def test_every_token_stands_in_a_block_of_its_expert(tokens: int, spread: str) -> None:
    random = torch.Generator().manual_seed(tokens)
    low, high = {"even": (0, 4), "one": (2, 3), "none of the first": (1, 4)}[spread]
    chosen = torch.randint(low, high, (tokens,), generator=random)
    places, of_block, size = blocks(chosen, 4)
    assert len(set(places.tolist())) == tokens
    assert torch.equal(of_block[places // size], chosen)
    assert len(of_block) * size <= 1.5 * tokens + 4
    assert len(of_block) <= max(tokens, 20)


def test_experts_of_a_dense_model_are_the_dense_model() -> None:
    """To rounding, whatever the router says; and not if one expert is another."""
    for structure in ({}, SHARED):
        plain = config(structure=structure, mlp={"kind": "relu2", "hidden": 32})
        model = build(plain, seed=3).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3)
        for active in (1, 2):
            made, values = upcycle(plain, weights(model), experts=4, active=active)
            copies = build(made, values=values).eval()
            torch.testing.assert_close(copies(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)
            bias = "transformer.h.0.mlp.c_fc.bias"
            values[bias] = values[bias] + np.repeat([0, 0, 0, 1], 32).astype(np.float32)
            assert (build(made, values=values).eval()(TOKENS) - model(TOKENS)).abs().max() > 1e-3


def test_experts_own_A_and_share_B() -> None:
    """By hand: of 2 x 16 x 32 dense values, A of 16 x 4 for each expert and B of 2 x 4 for all, three terms of them."""
    plain = config(structure=SHARED, mlp={"kind": "relu2", "hidden": 32})
    made, values = upcycle(plain, weights(build(plain, seed=3)), experts=4, active=2)
    fc, proj = "transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.weight"
    assert (values[f"{fc}.A"].shape, values[f"{fc}.B"].shape) == ((3, 64, 4), (3, 2, 4))
    assert (values[f"{proj}.U"].shape, values[f"{proj}.V"].shape) == ((16, 5), (5, 128))
    own = 2 * 3 * 16 * 4 + 3 * 4 * 16 + 5 * 32  # A of both c_fc, A and V of the c_proj
    router, biases = 2 * 4 * 16, 2 * 32
    assert parameter_count(made) - parameter_count(plain) == 3 * (own + biases) + router
    assert matrix_parameters(made) - matrix_parameters(plain) == own + router
    assert parameter_count(made) == sum(value.size for value in values.values())


def test_work_is_that_of_the_active_experts() -> None:
    made, plain = experts(), config(mlp={"kind": "relu2", "hidden": 32})
    own, dense_ = flops_by_kind(made), flops_by_kind(plain)
    assert (own["mlp.c_fc"], own["mlp.router"]) == (2 * dense_["mlp.c_fc"], 6 * 2 * 4 * 16)
    # The fused kernels of attention skip the masked half or count differently; the plain one multiplies it all.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective, _ = Learner(build(made, seed=0))(TOKENS, TOKENS)
        objective.backward()
    met, (_, of_block, size) = 2 * TOKENS.numel(), blocks(torch.zeros(72, dtype=torch.long), 4)
    idle = 6 * 2 * (len(of_block) * size - met) * 2 * 16 * 32  # rows that nobody stands in
    assert counter.get_total_flops() == 36 * flops_per_token(made) + idle
    assert flops_per_token(experts(active=3)) != flops_per_token(made)


def test_the_balance_is_a_sum_over_rows() -> None:
    even, skewed = torch.full((2, 8, 4), 0.25), torch.tensor([0.97, 0.01, 0.01, 0.01]).expand(2, 8, 4)
    turns = torch.arange(16).view(2, 8, 1) % 4
    assert unevenness(even, turns).tolist() == pytest.approx([1.0, 1.0])
    assert unevenness(skewed, torch.zeros(2, 8, 1, dtype=torch.long)).tolist() == pytest.approx([3.88, 3.88])
    learner = Learner(lively(experts()).float())
    whole, loss = learner(TOKENS, TOKENS)
    parts = [learner(TOKENS[i : i + 1], TOKENS[i : i + 1])[0] for i in range(3)]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)
    assert whole.item() > loss.item() + 0.01 * 36 * 2 * 0.9  # two layers, no less than 1 where all are even


@pytest.mark.parametrize(("balance", "spreads"), [(0.3, True), (0.0, False)])
def test_the_balance_brings_tokens_to_idle_experts(balance: float, spreads: bool) -> None:
    """A router that sends all to two of four experts sends them to all four soon, with the loss and not without it."""
    mlp = {"kind": "moe", "active": 2, "balance": balance, "each": {"kind": "relu2", "hidden": 16}}
    run = validate(settings(mlp=mlp, n_layer=1) | {"optim": {"lr": 0.01}}, origin="test")
    engine = TorchEngine(device="cpu", workers=1)
    values = weights(build(run.model, seed=0))
    router = "transformer.h.0.mlp.router.weight"
    values["transformer.h.0.ln_2.bias"] = np.ones(16, dtype=np.float32)
    values[router] = values[router] * 0.1 + np.array([[0.02], [0.02], [0], [0]], dtype=np.float32)
    state = engine.init(run, values)
    tokens = np.random.default_rng(0).integers(0, 10, (12, 13))
    batch = Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=144)
    for step in range(40):
        engine.step(state, batch, config=run, share=1.0, step=step)
    loads: list[Tensor] = []
    state.model.hidden(torch.from_numpy(tokens[:, :-1]), loads=loads)
    assert bool(loads[0].mean() < 1.1) is spreads


def test_an_expert_that_no_token_meets_is_dead() -> None:
    run = validate(settings(mlp=experts().mlp.model_dump(), bias=True), origin="test")
    engine = TorchEngine(device="cpu", workers=1)
    values = weights(build(run.model, seed=0))
    values["transformer.h.1.ln_2.bias"] = np.ones(16, dtype=np.float32)
    values["transformer.h.1.mlp.router.weight"] = np.repeat([[1.0], [1.0], [-1.0], [-1.0]], 16, axis=1).astype("f4")
    values["transformer.h.1.mlp.c_fc.bias"] = np.ones(128, dtype=np.float32)  # on, wherever a token comes
    tokens = np.random.default_rng(0).integers(0, 10, (12, 13))
    batch = Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=144)
    state, found = engine.init(run, values), []
    monitor = Monitor(run.model)
    for step in range(2):
        look = look_for(run.model, run.train.health)
        figures = engine.step(state, batch, config=run, share=0.0, step=step, look=look).health()
        assert figures is not None
        health = Health.of(figures, run.model, step=step + 1)
        found += monitor.add(health)
    assert health.dead[0] == 0.0  # pyright: ignore[reportPossiblyUnbound]
    assert health.dead[1] == 0.5  # pyright: ignore[reportPossiblyUnbound]
    [dead] = [finding for finding in found if finding.sign == "dead"]
    assert dead.part == "h.1.mlp.c_fc"
    assert "model.mlp.balance" in dead.remedy


def test_merged_and_made_to_decode_they_are_the_same_function() -> None:
    model = build(experts(structure=SHARED_OF_FOUR), seed=3).eval()
    plain, values = merge(model.config, weights(model))
    assert plain.experts == 4
    ready = TorchEngine(device="cpu", workers=1).model(model.config, weights(model))
    assert not any(isinstance(m, FactoredWeight) for m in ready.modules())
    for same in (build(plain, values=values).eval(), ready):
        torch.testing.assert_close(same(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)


SHARED_OF_FOUR = {
    "*.c_fc.weight": {"kind": "kronecker", "a_shape": [64, 16]},
    "*.mlp.c_proj.weight": {"kind": "monarch", "a_shape": [4, 16], "rank": 2},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mlp": {"kind": "moe", "experts": 3, "active": 4}}, r"active = 4 of 3 experts"),
        (
            {"structure": {"*.c_fc.weight": {"kind": "kronecker", "a_shape": [2, 4]}}},
            r"2 rows of A do not part among 4 experts; use a multiple of 4",
        ),
        (
            {"structure": {"*.mlp.c_proj.weight": {"kind": "kronecker+sparse", "a_shape": [4, 16], "columns": [1]}}},
            "few tokens have: use 'kronecker'",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experts(**changes) if "structure" in changes else config(**changes)


def test_experts_are_made_once() -> None:
    made = experts()
    with pytest.raises(ConfigError, match="4 experts already"):
        upcycle(made, weights(build(made, seed=0)), experts=2, active=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # torch's own compiler uses it
def test_a_compiled_step_is_the_same() -> None:
    model = build(experts(structure=SHARED_OF_FOUR), seed=3)
    plain, _ = Learner(model)(TOKENS, TOKENS)
    fused, _ = torch.compile(Learner(model), fullgraph=True)(TOKENS, TOKENS)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def test_recomputing_changes_no_gradient() -> None:
    """The balancing loss leaves a block beside its output, so what is computed again must reach it too."""
    model = build(experts(structure=SHARED_OF_FOUR), seed=3)
    found: dict[bool, list[Tensor]] = {}
    for model.recompute in (False, True):
        objective, _ = Learner(model)(TOKENS, TOKENS)
        found[model.recompute] = list(torch.autograd.grad(objective, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(found[False], found[True], strict=True))


def test_bf16_autocast_stays_near() -> None:
    model = build(experts(), seed=3).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        narrow = model(TOKENS)
    wide = model(TOKENS)
    # Each product rounds to 2^-9, a dozen of them in a row; and a token between two experts may meet another one.
    assert (narrow.float() - wide).abs().max() < 0.05 * wide.abs().max()
