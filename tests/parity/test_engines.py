"""The engines agree, level by level: files, activations, logits, loss, gradients, weights after steps.

What errors are allowed is in ``bonsaigpt/measure/parity.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax.numpy as jnp

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, RunConfig, derive, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import ConfigError
from bonsaigpt.jax_engine.engine import JaxEngine
from bonsaigpt.jax_engine.loss import loss
from bonsaigpt.jax_engine.model import nested
from bonsaigpt.jax_engine.observing import observe
from bonsaigpt.jax_engine.step import rows_of
from bonsaigpt.measure.parity import comparable, differences
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.loss import cross_entropy_sum
from bonsaigpt.torch_engine.model import build, weights
from bonsaigpt.trace import Observed
from tests.torch_engine.variants import VARIANTS, variant

TORCH, JAX = TorchEngine(device="cpu", workers=1), JaxEngine(device="cpu")
MANY_SWITCHES = {
    "gpt2",
    "swiglu",
    "rope, neighbours",
    "sinks in windows",
    "qk-norm with factors, wide heads",
    "shared, in windows",
    "linear, rope",
    "modern",
}
COMPUTED = [
    pytest.param(name, marks=[] if name in MANY_SWITCHES else pytest.mark.slow)
    for name in VARIANTS
    if not name.startswith(("latent", "experts"))
]


def lively(config: ModelConfig) -> Arrays:
    """Weights of size 0.1, at which attention and MLPs do something but logits stay of the order of one."""
    generator = np.random.default_rng(0)
    return {
        name: (w + 0.1 * generator.standard_normal(w.shape)).astype(np.float32)
        for name, w in weights(build(config, seed=2)).items()
    }


def text(config: ModelConfig, rows: int = 2, length: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and targets of which some do not count."""
    generator = np.random.default_rng(1)
    tokens, targets = generator.integers(0, config.vocabulary, (2, rows, length))
    targets[generator.random(targets.shape) < 0.2] = -1
    return tokens, targets


def in_torch(config: ModelConfig, values: Arrays, tokens: np.ndarray, targets: np.ndarray, *, double: bool) -> Observed:
    """All on the way to a step."""
    run = comparable(derive(RunConfig(), model=config.model_dump()))
    found = TORCH.observe(run, values, {}, batch_of(tokens, targets), double=double)
    return {level: found[level] for level in ("activations", "logits", "loss", "gradients")}


def in_jax(config: ModelConfig, values: Arrays, tokens: np.ndarray, targets: np.ndarray, **optim: Any) -> Observed:
    """The same; operator by operator, which compiles each of them once for all variants."""
    run = comparable(derive(RunConfig(), model=config.model_dump(), optim=optim))
    params = nested(config, {name: jnp.asarray(value) for name, value in values.items()})
    batch = batch_of(tokens, targets)
    found = observe(run, params, rows_of(batch), jnp.float32(batch.count))
    return {level: {name: np.asarray(x, np.float64) for name, x in tensors.items()} for level, tensors in found.items()}


def batch_of(tokens: np.ndarray, targets: np.ndarray) -> Batch:
    return Batch(tokens_BT=tokens, targets_BT=targets, count=int(np.count_nonzero(targets != -1)))


def divergence(truth: Observed, reference: Observed, found: Observed) -> list[str]:
    """Tensors in which ``found`` is further from the truth than it may be, in the order of the computation."""
    return [str(difference) for difference in differences(truth, reference, found) if difference.parts]


@pytest.mark.parametrize("name", COMPUTED)
def test_activations_logits_loss_and_gradients(name: str) -> None:
    config = variant(name)
    values, (tokens, targets) = lively(config), text(config)
    truth, reference = (in_torch(config, values, tokens, targets, double=double) for double in (True, False))
    assert np.abs(truth["logits"]["logits"]).max() > 0.3
    assert not divergence(truth, reference, in_jax(config, values, tokens, targets))


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"norm": {"kind": "layernorm", "eps": 1e-6}}, "transformer.h.0.ln_1"),
        ({"mlp": {"kind": "gelu", "approximate": "tanh"}}, "transformer.h.0.mlp"),
        ({"attention": {"qk_norm": True}}, "transformer.h.0.attn"),
        ({"logit_softcap": 30.0}, "logits"),
    ],
)
def test_the_comparison_notices_each_trap(change: dict[str, Any], first: str) -> None:
    """Negative controls, each a known way for two such programs to differ; the first tensor that is wrong is named."""
    config = variant("gpt2")
    values, (tokens, targets) = lively(config), text(config)
    truth, reference = (in_torch(config, values, tokens, targets, double=double) for double in (True, False))
    assert divergence(truth, reference, in_jax(variant("gpt2", **change), values, tokens, targets))[0].startswith(first)


@pytest.mark.parametrize("name", ["sliding windows", pytest.param("linear, rope", marks=pytest.mark.slow)])
def test_documents_stay_apart(name: str) -> None:
    config = variant(name)
    values, (tokens, targets) = lively(config), text(config)
    documents = np.sort(np.random.default_rng(2).integers(0, 3, tokens.shape), axis=1)
    model = build(config, values=values)
    summed = cross_entropy_sum(
        model(torch.from_numpy(tokens), documents_BT=torch.from_numpy(documents)), torch.from_numpy(targets)
    ).item()
    params = nested(config, values)
    apart = float(loss(config, params, tokens, targets, documents_BT=jnp.asarray(documents))[1])
    assert apart == pytest.approx(summed, rel=1e-6)
    assert float(loss(config, params, tokens, targets)[1]) != pytest.approx(summed, rel=1e-3)


def test_logits_in_chunks_are_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    config = variant("soft cap, padded vocabulary")
    values, (tokens, targets) = lively(config), text(config)
    whole = in_jax(config, values, tokens, targets, z_loss=1e-2)
    monkeypatch.setattr("bonsaigpt.jax_engine.loss.WHOLE", 24 * 5)
    chunked = in_jax(config, values, tokens, targets, z_loss=1e-2)
    for level, tensors in whole.items():
        for name, value in tensors.items():
            assert np.abs(chunked[level][name] - value).max() <= 2e-6 * max(1.0, np.abs(value).max()), name
    gradients = in_jax(config, values, tokens, targets)["gradients"]  # the negative control
    assert any(np.abs(gradients[name] - value).max() > 1e-3 for name, value in whole["gradients"].items())


# ---------------------------------------------------------------------- steps

BLOCKS: dict[str, dict[str, Any]] = {
    # The gradient of the keys' bias is zero but for rounding: a larger eps keeps Adam from making steps of that.
    "adamw": {"model": {"bias": True}, "optim": {"eps": 1e-5}},
    "muon, average": {
        "model": {
            "mlp": {"kind": "swiglu"},
            "norm": {"kind": "rmsnorm"},
            "position": {"kind": "rope"},
            "attention": {"n_kv_head": 1},
            "tie_embeddings": False,
            "mup_base": 16,
        },
        "optim": {
            "matrices": {"kind": "muon", "precision": "fp32"},
            "ema": 0.5,
            "z_loss": 1e-3,
            "lr_scale": {"*.wte.*": 2.0, "*.c_fc.*": 0.5},
        },
        "train": {"micro_batch": 3, "recompute": True},
    },
}


def run_config(name: str, **optim: Any) -> RunConfig:
    settings: dict[str, dict[str, Any]] = {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 17},
        "optim": {"lr": 3e-3, "grad_clip": 0.5, "schedule": {"kind": "cosine", "warmup": 2}},
        "train": {
            "steps": 100,
            "batch_size": 4,
            "micro_batch": 4,
            "workers": 1,
            "compile": "off",
            "precision": "fp32",
            "attention_kernel": "sdpa",
        },
    }
    for section, values in (BLOCKS[name] | ({"optim": BLOCKS[name].get("optim", {}) | optim})).items():
        settings[section] |= values
    return validate(settings, origin="test")


def batch_at(step: int) -> Batch:
    """Text with a rule in it, so that there is something to learn."""
    starts = np.random.default_rng(step).integers(0, 17, (4, 1))
    rows = (starts + 3 * np.arange(17)) % 17
    return Batch(tokens_BT=rows[:, :-1], targets_BT=rows[:, 1:], count=64)


def steps_of(engine: Any, config: RunConfig, state: Any, first: int, last: int) -> dict[str, float]:
    metrics: Any = None
    for step in range(first, last):
        share = min(1.0, (step + 1) / 3) * (1 - step / 200)
        metrics = engine.step(state, batch_at(step), config=config, share=share, step=step)
    return metrics.host()


def relative_error(ours: Arrays, theirs: Arrays) -> float:
    """The largest error of any tensor, relative to its norm."""
    assert ours.keys() == theirs.keys()
    return max(
        float(np.linalg.norm(ours[name] - value) / max(np.linalg.norm(value), 1e-12)) for name, value in theirs.items()
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_weights_and_the_optimizers_state_after_many_steps(name: str) -> None:
    config = run_config(name)
    ours, theirs = JAX.init(config), TORCH.init(config)
    fresh = TORCH.arrays(theirs)[0]
    assert list(fresh) == list(JAX.arrays(ours)[0])
    assert all(np.array_equal(value, fresh[key]) for key, value in JAX.arrays(ours)[0].items())
    # Gradients here are of low rank (17 tokens, width 32), and Muon lifts what rounding leaves in other directions to
    # the size of the rest: after a hundred of its steps losses agree to 1e-3, and weights do not.
    steps = 5 if "muon" in name else 100
    for first, last in ((0, 1), (1, steps)):
        mine, other = steps_of(JAX, config, ours, first, last), steps_of(TORCH, config, theirs, first, last)
        assert mine == pytest.approx(other, rel=1e-5 if last == 1 else 1e-3)
        (found, kept), (wished, kept_there) = JAX.arrays(ours), TORCH.arrays(theirs)
        assert relative_error(found, wished) <= 1e-4
        # Gradients of a model that has nearly learned its rule are small differences: their errors are larger.
        assert relative_error(kept, kept_there) <= (1e-4 if last == 1 else 1e-2)
    # The negative control: without decay the weights are others.
    changed = run_config(name, weight_decay=0.0)
    wrong = JAX.init(changed)
    steps_of(JAX, changed, wrong, 0, steps)
    assert relative_error(JAX.arrays(wrong)[0], TORCH.arrays(theirs)[0]) > 1e-4


@pytest.mark.parametrize("name", BLOCKS)
def test_a_state_goes_from_engine_to_engine_bit_for_bit(name: str) -> None:
    """And steps after that are as if it had stayed."""
    config = run_config(name)
    state = TORCH.init(config)
    steps_of(TORCH, config, state, 0, 3)
    saved = TORCH.arrays(state)
    moved = JAX.restore(config, *saved)
    for found, wished in zip(JAX.arrays(moved), saved, strict=True):
        assert found.keys() == wished.keys()
        assert all(
            np.array_equal(found[key], value) and found[key].dtype == value.dtype for key, value in wished.items()
        )
    steps_of(JAX, config, moved, 3, 5)
    back = TORCH.restore(config, *JAX.arrays(moved))
    steps_of(TORCH, config, back, 5, 7)
    steps_of(TORCH, config, state, 3, 7)
    for found, wished in zip(TORCH.arrays(back), TORCH.arrays(state), strict=True):
        assert relative_error(found, wished) <= 1e-4
    forgetful = JAX.restore(config, saved[0], {})  # the negative control: without the optimizer's state
    steps_of(JAX, config, forgetful, 3, 5)
    assert relative_error(JAX.arrays(forgetful)[0], JAX.arrays(moved)[0]) > 1e-4


ADAPTERS = {
    "*.attn.c_attn.weight": {"kind": "dora", "rank": 2},
    "*.attn.c_proj.weight": {"kind": "lora", "rank": 2},
    "*.c_fc.weight": {"kind": "lokr", "a_shape": [16, 8]},
}
FROZEN = {"*": 0.0, "*.delta.*": 2.0, "*.magnitude": 1.0, "*.ln_1.*": 0.5}


def test_adapters_on_frozen_weights() -> None:
    """All levels agree, and a step changes what is to be trained and nothing else."""
    model = variant("gpt2", n_layer=1, structure=ADAPTERS)
    frozen = comparable(derive(RunConfig(), model=model.model_dump(), optim={"lr_scale": FROZEN, "eps": 1e-5}))
    values, (tokens, targets) = lively(model), text(model)
    batch = batch_of(tokens, targets)
    truth, reference = (TORCH.observe(frozen, values, {}, batch, double=double) for double in (True, False))
    found = JAX.observe(frozen, values, {}, batch)
    assert not divergence(truth, reference, found)
    moved = {name for name, value in values.items() if not np.array_equal(found["step"][name], value)}
    wished = {name for name in values if "delta" in name or name.endswith("magnitude") or "ln_1" in name}
    assert moved == wished == found["gradients"].keys()
    free = comparable(derive(frozen, optim={"lr_scale": {}}))  # the negative control
    params = nested(model, {name: jnp.asarray(value) for name, value in values.items()})
    assert observe(free, params, rows_of(batch), jnp.float32(batch.count))["gradients"].keys() > wished
    with pytest.raises(ConfigError, match="freezes every parameter"):
        JAX.init(comparable(derive(frozen, optim={"lr_scale": {"*": 0.0}})))


def test_micro_batches_and_dropout() -> None:
    """However a batch is cut the step is the same; dropout is a function of (seed, step)."""
    whole, cut = run_config("adamw"), run_config("adamw")
    cut = cut.model_copy(update={"train": cut.train.model_copy(update={"micro_batch": 3})})
    states = [JAX.init(config) for config in (whole, cut)]
    figures = [steps_of(JAX, config, state, 0, 1) for config, state in zip((whole, cut), states, strict=True)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)
    assert relative_error(JAX.arrays(states[0])[0], JAX.arrays(states[1])[0]) <= 1e-5

    dropped = whole.model_copy(update={"model": whole.model.model_copy(update={"dropout": 0.5})})
    losses: list[float] = []
    for step in (0, 0, 1):
        state = JAX.init(dropped)
        losses.append(JAX.step(state, batch_at(0), config=dropped, share=1.0, step=step).host()["loss"])
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] != figures[0]["loss"]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    config = run_config("adamw")
    state = JAX.init(config)
    steps_of(JAX, config, state, 0, 1)
    before = JAX.arrays(state)
    bad = {
        name: np.where(np.arange(value.size).reshape(value.shape) == 0, np.nan, value)
        for name, value in before[0].items()
    }
    poisoned = JAX.restore(config, bad, before[1])
    assert JAX.step(poisoned, batch_at(1), config=config, share=1.0, step=1).host()["skipped"] == 1.0
    after = JAX.arrays(poisoned)
    assert all(np.array_equal(after[0][name], value, equal_nan=True) for name, value in bad.items())
    assert all(np.array_equal(after[1][name], value) for name, value in before[1].items() if name != "guard")


def test_evaluation_is_the_same_sum_and_counts_solved_rows() -> None:
    config = run_config("adamw").model
    values = lively(config)
    ours, theirs = JAX.model(config, values), TORCH.model(config, values)
    for rows in (4, 3):  # the second is filled up to the size of the first
        batch = batch_at(0).part(0, 1)
        batch = Batch(tokens_BT=batch.tokens_BT[:rows], targets_BT=batch.targets_BT[:rows].copy(), count=rows)
        batch.targets_BT[:, 1:] = -1
        best = TORCH.next_logits(theirs, batch.tokens_BT[:, :1]).argmax(axis=-1)
        batch.targets_BT[:2, 0] = best[:2]
        batch.targets_BT[2:, 0] = (best[2:] + 1) % 17
        found, wished = JAX.evaluate(ours, batch, exact=True), TORCH.evaluate(theirs, batch, exact=True)
        assert found[1] == wished[1] == 2
        assert found[0] == pytest.approx(wished[0], rel=1e-5)
        assert JAX.evaluate(ours, batch)[0] == pytest.approx(wished[0], rel=1e-5)
    whole = batch_at(0)
    each = [engine.losses(model, whole.tokens_BT, whole.targets_BT) for engine, model in ((JAX, ours), (TORCH, theirs))]
    assert np.abs(each[0] - each[1]).max() <= 1e-5
