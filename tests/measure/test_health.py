"""Gradient health: figures equal their definitions, what is planted is named with its share, and health is silent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.config import RunConfig, SoftmaxAttention, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.measure.health import (
    LOOKS,
    Finding,
    Health,
    Monitor,
    effective_rank,
    effective_terms,
    look_for,
    relative_entropy,
)
from bonsaigpt.structure import structures
from bonsaigpt.torch_engine import attention, latent
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.health import Checkup, attention_entropy, participation_ratio
from tests.torch_engine.variants import VARIANTS, variant

ENGINE = TorchEngine(device="cpu", workers=2)
KRONECKER = {"structure": {"*.c_fc.weight": {"kind": "kronecker", "a_shape": [10, 4], "terms": 4}}}
PLANT = 61
"""Of 100 hidden units."""


def config(kind: str = "gelu", **more: Any) -> RunConfig:
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11, "bias": True}
    model = sizes | {"mlp": {"kind": kind, "hidden": 100}} | more
    return validate({"model": model, "train": {"batch_size": 16, "micro_batch": 8}}, origin="test")


def batch(seed: int = 0, rows: int = 16, length: int = 8) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, 11, (rows, length + 1))
    return Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=rows * length)


def look(run: RunConfig, plant: dict[str, Any] | None = None, steps: int = 2, share: float = 0.1) -> list[Finding]:
    """What a monitor says of some steps; ``plant``: values for parameters by their names (whole, or first rows)."""
    state = ENGINE.init(run)
    named = dict(state.model.named_parameters())
    for name, (rows, value) in (plant or {}).items():
        with torch.no_grad():
            named[name][:rows] = value
    monitor, found = Monitor(run.model), []
    for step in range(steps):
        asked = look_for(run.model, run.train.health)
        metrics = ENGINE.step(state, batch(step), config=run, share=share, step=step, look=asked)
        figures = metrics.health()
        assert figures is not None
        found += monitor.add(Health.of(figures, run.model, step=step + 1))
    return found


GATE = {"gelu": "c_fc", "relu2": "c_fc", "swiglu": "c_gate"}
BIAS = "transformer.h.2.mlp.{}.bias"


@pytest.mark.parametrize("kind", LOOKS)
def test_a_planted_dead_layer_is_named_with_its_share(kind: str) -> None:
    [finding] = look(config(kind), {BIAS.format(GATE[kind]): (PLANT, -30.0)})
    assert (finding.sign, finding.part, finding.first) == ("dead", f"h.2.mlp.{GATE[kind]}", 1)
    assert finding.sentence.startswith(f"{GATE[kind]} of block 2: 61 % of units never active at 128 tokens; ")


@pytest.mark.parametrize("kind", LOOKS)
def test_a_planted_saturated_layer_is_named_with_its_share(kind: str) -> None:
    [finding] = look(config(kind), {BIAS.format(GATE[kind]): (PLANT, 3.0 if kind == "relu2" else 30.0)})
    assert (finding.sign, finding.part) == ("saturated", f"h.2.mlp.{GATE[kind]}")
    assert finding.words == f"{GATE[kind]} of block 2: 61 % of units saturated at 128 tokens"


def test_a_layer_that_jumps_over_the_bend_is_saturated() -> None:
    """Weights a thousand times too large: nothing is always on or always off, and nothing bends."""
    big = torch.randn(100, 16, generator=torch.Generator().manual_seed(1)) * 20.0
    [finding] = look(config(bias=False), {"transformer.h.2.mlp.c_fc.weight": (100, big)})
    assert (finding.sign, finding.part) == ("saturated", "h.2.mlp.c_fc")


@pytest.mark.parametrize("rows", [10, 39])
def test_what_is_planted_below_the_threshold_is_no_news(rows: int) -> None:
    assert not look(config(), {BIAS.format("c_fc"): (rows, -30.0)})


def test_one_look_is_not_enough() -> None:
    assert not look(config(), {BIAS.format("c_fc"): (PLANT, -30.0)}, steps=1)


def test_a_finding_is_told_once_and_keeps_its_beginning() -> None:
    run = config()
    found = look(run, {BIAS.format("c_fc"): (PLANT, -30.0)}, steps=5)
    assert len(found) == 1
    monitor = Monitor(run.model)
    healthy = health(run)
    sick = replace(healthy, dead=[0.0, 0.61, 0.0])
    begun = [monitor.add(replace(h, step=10 * i)) for i, h in enumerate([healthy, sick, sick, sick, healthy, healthy])]
    assert [len(b) for b in begun] == [0, 0, 1, 0, 0, 0]
    [finding] = monitor.findings.values()
    assert (finding.first, finding.last) == (10, 30)


def health(run: RunConfig, step: int = 1) -> Health:
    state = ENGINE.init(run)
    asked = look_for(run.model, run.train.health)
    figures = ENGINE.step(state, batch(), config=run, share=1.0, step=0, look=asked).health()
    assert figures is not None
    return Health.of(figures, run.model, step=step)


def test_attention_that_looks_at_one_token_is_named() -> None:
    big = torch.randn(48, 16, generator=torch.Generator().manual_seed(1)) * 300.0
    big[32:] = 0.01  # values as they were: the rest of the model is well
    found = look(config(), {"transformer.h.0.attn.c_attn.weight": (48, big)})
    assert ("collapsed", "h.0.attn") in [(f.sign, f.part) for f in found]
    assert all(f.part.startswith("h.0.attn") for f in found)


def test_factors_that_are_both_zero_get_no_gradient_and_are_named() -> None:
    """A saddle: the gradient of each is a product with the other."""
    name = "transformer.h.1.mlp.c_fc.weight"
    found = look(config(**KRONECKER), {f"{name}.A": (4, 0.0), f"{name}.B": (4, 0.0)})
    assert {(f.sign, f.part) for f in found} == {("silent", "h.1.mlp.c_fc.A"), ("silent", "h.1.mlp.c_fc.B")}
    assert found[0].words == "A of c_fc of block 1: no gradient reaches it"


def test_terms_that_carry_nothing_are_named() -> None:
    found = look(config(**KRONECKER), {"transformer.h.1.mlp.c_fc.weight.A": (3, 1e-9)}, share=0.0)
    assert [(f.sign, f.words) for f in found] == [("idle", "c_fc of block 1: 3 of 4 terms carry nothing")]


def test_a_factor_that_outgrows_the_other_is_named() -> None:
    run = config(structure={"*.0.mlp.c_fc.weight": {"kind": "kronecker", "a_shape": [10, 4], "terms": 4}})
    monitor, start = Monitor(run.model), health(run)
    name = "h.0.mlp.c_fc"
    assert start.balance[name] is not None
    drifted = replace(start, balance={name: start.balance[name] + 2.0})
    [finding] = [f for h in (start, drifted, drifted) for f in monitor.add(h)]
    assert finding.words == "c_fc of block 0: its first factor has grown 100-fold over the other"


def test_a_rate_that_rewrites_weights_is_named() -> None:
    found = look(config(), share=1000.0)
    assert {f.sign for f in found} >= {"rushed"}
    assert "one step changes it by" in found[0].words


def test_a_weight_of_one_direction_is_named() -> None:
    found = look(config(), {"transformer.h.2.attn.c_proj.weight": (16, 1.0)}, share=0.0)
    assert [(f.sign, f.part) for f in found] == [("flat", "h.2.attn.c_proj")]


@pytest.mark.parametrize("kind", LOOKS)
def test_a_fresh_model_is_healthy(kind: str) -> None:
    for bias in (False, True):
        assert not look(config(kind, bias=bias), steps=4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_looked_at(name: str) -> None:
    run = validate({"model": variant(name).model_dump(), "train": {"batch_size": 16}}, origin="test")
    found = health(run)
    assert len(found.dead) == len(found.entropy) == 3
    qk_norm = isinstance(run.model.attention, SoftmaxAttention) and run.model.attention.qk_norm
    flattest = 0.5 if qk_norm else 0.98  # normalised queries are long from the start
    assert all(flattest < value <= 1.0 for heads in found.entropy for value in heads if value is not None)
    weights = {n.removeprefix("transformer.").removesuffix(".weight") for n in structures(run.model)}
    assert found.effective_rank.keys() == weights
    assert all(value is not None and 0.0 < value <= 1.0 for value in found.effective_rank.values())
    assert Health.from_dict(found.as_dict()) == found


# ------------------------------------------------------------------ definitions


@pytest.mark.parametrize("structured", [False, True])
def test_norms_and_updates_are_those_of_the_step(structured: bool) -> None:
    """Each under its own name: the factors of a weight stand elsewhere in the module than in the spec."""
    run = config(**KRONECKER if structured else {})
    engine = TorchEngine(device="cpu", workers=1)
    state = engine.init(run)
    gradients: dict[str, float] = {}
    for name, parameter in state.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.__setitem__(name, p.grad.norm().item())
        )
    before = {n: p.detach().clone() for n, p in state.model.named_parameters()}
    asked = look_for(run.model, run.train.health)
    metrics = engine.step(state, batch(), config=run, share=1.0, step=0, look=asked)
    figures = metrics.health()
    assert figures is not None
    found = Health.of(figures, run.model, step=1)
    norms = [value for value in found.grad_norm.values() if value is not None]
    assert sum(n**2 for n in norms) ** 0.5 == pytest.approx(metrics.host()["grad_norm"], rel=1e-3)  # 4 digits each
    for name, parameter in state.model.named_parameters():
        short = name.removeprefix("transformer.").replace(".weight", "")
        change, size = (parameter - before[name]).norm().item(), before[name].norm().item()
        assert found.update_ratio[short] == (pytest.approx(change / size, rel=1e-3) if size else None)
        assert found.grad_norm[short] == pytest.approx(gradients[name], rel=1e-3)
        norm, rms = found.grad_norm[short], found.grad_rms[short]
        assert norm is not None
        assert rms == pytest.approx(norm / parameter.numel() ** 0.5, rel=1e-3)


def test_an_update_is_seen_at_evenly_spaced_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large tensor: the ratio of its sample, which is near the whole one's, as all columns are in it."""
    run = config()
    whole = health(run).update_ratio["h.1.mlp.c_fc"]
    monkeypatch.setattr("bonsaigpt.torch_engine.health._SAMPLES", 200)
    assert health(run).update_ratio["h.1.mlp.c_fc"] == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("shape", [(40, 40), (20, 90), (90, 20), (1, 7)])
def test_effective_rank_by_products_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 1e-6
    assert participation_ratio(torch.from_numpy(matrix)).item() == pytest.approx(effective_rank(matrix), rel=1e-5)


def test_effective_rank_of_known_matrices() -> None:
    assert effective_rank(np.eye(7)) == pytest.approx(7.0)
    assert effective_rank(np.outer(np.arange(5), np.arange(6))) == pytest.approx(1.0)
    assert effective_rank(np.diag([1.0, 1.0, 0.0])) == pytest.approx(2.0)
    assert effective_rank(np.zeros((3, 3))) == participation_ratio(torch.zeros(3, 3)).item() == 0.0
    square = np.random.default_rng(0).standard_normal((400, 400))
    assert effective_rank(square) / 400 == pytest.approx(0.5, rel=0.02)  # as the docstring has it


def test_effective_rank_is_below_roy_and_vetterlis() -> None:
    matrix = np.random.default_rng(0).standard_normal((30, 50)) @ np.diag(np.geomspace(1, 1e-3, 50))
    shares = np.linalg.svd(matrix, compute_uv=False)
    shares /= shares.sum()
    assert effective_rank(matrix) < np.exp(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("documents", [False, True])
def test_entropy_is_that_of_the_shares_of_attention(documents: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 6, 5, generator=draws) * 2, torch.randn(2, 2, 6, 5, generator=draws)
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6).clone()
    if documents:
        mask[:, :, 3:, :3] = False
    found = attention_entropy(q, k, mask if documents else None)
    for head in range(4):
        values = []
        for row in range(2):
            for t in range(6):
                allowed = mask[row, 0, t]
                if allowed.sum() > 1:
                    scores = q[row, head, t] @ k[row, head // 2].T / 5**0.5
                    values.append(relative_entropy(scores[allowed].double().softmax(-1).numpy()))
        assert found[head].item() == pytest.approx(np.mean(values), rel=1e-5)


def test_entropy_of_known_attention() -> None:
    assert relative_entropy(np.full(9, 1 / 9)) == pytest.approx(1.0)
    assert relative_entropy(np.array([0.0, 1.0, 0.0])) == 0.0
    flat = attention_entropy(torch.zeros(1, 1, 600, 4), torch.zeros(1, 1, 600, 4), None)  # more than are looked at
    assert flat.item() == pytest.approx(1.0, rel=1e-5)


ATTENTIONS: dict[str, dict[str, Any]] = {
    "windows": {"window": 3, "pattern": "SL", "n_kv_head": 2},
    "sinks": {"sinks": True, "window": 5},
    "shared": {"share_kv": 2, "qk_norm": True},
    "latent": {"kind": "latent"},
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_entropy_is_that_of_every_kind_of_softmax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the shares that attention mixes by, taken where it mixes; a sink is one token more."""
    run = config(n_head=4, position={"kind": "rope"}, attention=ATTENTIONS[name])
    state = ENGINE.init(run)
    rows = batch(rows=3)
    mixing: list[torch.Tensor] = []

    def seen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **how: Any) -> torch.Tensor:
        sinks_H = how.get("sinks_H")
        taken = attention.shares(q, k, mask, sinks_H=sinks_H, scale=how["scale"])
        mixing.append(taken if sinks_H is None else torch.cat((taken, 1 - taken.sum(-1, keepdim=True)), dim=-1))
        return taken @ v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)

    for module in (attention, latent):
        monkeypatch.setattr(module, "attend", seen)
    asked = replace(look_for(run.model, run.train.health), tokens=10**6)
    checkup = Checkup(state.model, state.layout)
    checkup.activations(torch.from_numpy(rows.tokens_BT), None, asked, ENGINE.placement)
    assert len(mixing) == 3
    for layer, taken in enumerate(mixing):
        for head in range(4):
            each = [share[share > 0].double().numpy() for share in taken[:, head].flatten(0, 1)]
            want = np.mean([relative_entropy(share) for share in each if len(share) > 1])
            assert checkup.figures[f"entropy/{layer}"][head].item() == pytest.approx(want, rel=1e-4)
    reach = [int((taken[0, 0, -1] > 0).sum()) for taken in mixing]
    assert reach == {"windows": [3, 8, 3], "sinks": [6] * 3}.get(name, [8] * 3)


def test_linear_attention_has_no_entropy_and_all_other_figures() -> None:
    run = config(attention={"kind": "linear"}, position={"kind": "rope"})
    state = ENGINE.init(run)
    asked = look_for(run.model, run.train.health)
    figures = ENGINE.step(state, batch(), config=run, share=0.1, step=0, look=asked).health()
    assert figures is not None
    health = Health.of(figures, run.model, step=1)
    assert health.entropy == [[], [], []]
    assert len(health.dead) == 3
    assert all(value is not None for value in health.grad_rms.values())
    assert Health.from_dict(health.as_dict()) == health
    assert not Monitor(run.model).add(health)


def test_terms_are_counted_by_their_energy() -> None:
    assert effective_terms([0.25] * 4) == 1.0
    assert effective_terms([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert effective_terms([None, None]) is None


@pytest.mark.parametrize(
    "setting",
    [
        {"kind": "kronecker", "a_shape": [16, 8], "terms": 3, "scalers": True},
        {"kind": "lowrank", "rank": 6},
        {"kind": "monarch", "a_shape": [16, 4], "rank": 2},
    ],
    ids=lambda s: s["kind"],
)
def test_energies_are_the_squared_norms_of_the_terms(setting: dict[str, Any]) -> None:
    """Each term alone, as the matrix that the factors give when all others are zero."""
    name = "transformer.h.0.mlp.c_fc.weight"
    run = validate({"model": variant("gpt2", structure={name: setting}).model_dump()}, origin="test")
    model = ENGINE.init(run).model
    weight = model.transformer.h[0].mlp.c_fc.weight
    first, second = list(weight.parameters())[:2]
    norms = weight.term_norms().double()
    energies = norms.prod(dim=0) ** 2
    if setting["kind"] == "monarch":  # slice by slice, and in each its ranks
        m2, n1, r = 8, 4, 2
        assert len(energies) == m2 * n1 * r
        keep = torch.zeros_like(first).reshape(m2, -1, n1, r)
        keep[3, :, 1, 1] = 1.0
        index = (3 * n1 + 1) * r + 1
        with torch.no_grad():
            first.mul_(keep.reshape(first.shape))
    else:
        index, axis = 2, 0 if setting["kind"] == "kronecker" else 1
        with torch.no_grad():
            first.index_fill_(axis, torch.tensor([i for i in range(len(energies)) if i != index]), 0.0)
    assert weight.dense().double().square().sum().item() == pytest.approx(energies[index].item(), rel=1e-5)
    assert second is not first


def test_a_part_of_the_batch_is_looked_at_in_whole_rows() -> None:
    run = config()
    for asked, seen in ((1, 8), (20, 16), (10**6, 128)):
        state = ENGINE.init(run)
        wished = replace(look_for(run.model, run.train.health), tokens=asked)
        figures = ENGINE.step(state, batch(), config=run, share=1.0, step=0, look=wished).health()
        assert figures is not None
        assert figures["tokens"] == [seen]


def test_nothing_is_left_behind() -> None:
    run = config()
    state, asked = ENGINE.init(run), look_for(run.model, run.train.health)
    ENGINE.step(state, batch(), config=run, share=1.0, step=0, look=asked)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in state.model.modules())
    assert all(m.training for m in state.model.modules())


def test_a_figure_that_is_no_number_is_none() -> None:
    run = config()
    found = health(run)
    state = ENGINE.init(run)
    with torch.no_grad():
        dict(state.model.named_parameters())["transformer.h.0.mlp.c_fc.weight"].fill_(float("nan"))
    asked = look_for(run.model, run.train.health)
    figures = ENGINE.step(state, batch(), config=run, share=1.0, step=0, look=asked).health()
    assert figures is not None
    lost = Health.of(figures, run.model, step=1)
    assert lost.grad_norm["h.0.mlp.c_fc"] is None
    assert lost.entropy[2] == [None, None]
    assert found.entropy[2] != [None, None]
    monitor = Monitor(run.model)
    assert not [*monitor.add(lost), *monitor.add(lost)]  # the guard says what is to say
