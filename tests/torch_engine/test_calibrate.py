"""Calibration sums are those of the activations; a map fitted to them makes up for the prefix."""

from __future__ import annotations

import numpy as np
import torch

from bonsaigpt.compress import Moments
from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.torch_engine.calibrate import map_sums
from bonsaigpt.torch_engine.model import GPT, build, weights

FC, PROJ = "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.weight"


def config() -> ModelConfig:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 9, "bias": True}
    return validate({"model": sizes}, origin="t").model


def lively(seed: int) -> GPT:
    random = np.random.default_rng(seed)
    values = weights(build(config(), seed=1))
    return build(config(), values={n: a + 0.3 * random.standard_normal(a.shape) for n, a in values.items()}).eval()


def tokens(batches: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 9, (5, 16)) for _ in range(batches)]


def test_sums_are_those_of_the_activations() -> None:
    model, seen = lively(0), []
    layer = model.transformer.h[1].mlp.c_fc
    layer.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0], out)))
    sums = map_sums(model, tokens(), [FC, PROJ])
    x = torch.cat([i.flatten(0, 1) for i, _ in seen]).double().numpy()
    t = torch.cat([(o - layer.bias).flatten(0, 1) for _, o in seen]).detach().double().numpy()
    C, M, power, count = sums[FC].means()
    assert count == len(x) == 4 * 5 * 16
    np.testing.assert_allclose(C, x.T @ x / count, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(M, t.T @ x / count, rtol=1e-12, atol=1e-12)
    assert np.isclose(power, np.square(t).sum() / count)
    own = Moments(*sums[PROJ].means())
    moved = model.transformer.h[1].mlp.c_proj.weight.detach().double().numpy() * 1.1
    assert np.isclose(own.error(moved), 0.01)
    assert own.error(model.transformer.h[1].mlp.c_proj.weight.detach().double().numpy()) < 1e-9
    assert own.error(np.zeros_like(own.M)) == 1.0
    assert len(layer._forward_hooks) == 1  # the test's: those of the calibration are gone


def test_a_map_fitted_behind_a_damaged_prefix_brings_the_stream_nearer() -> None:
    teacher, text = lively(0), tokens(12)
    values = weights(teacher)
    values["transformer.h.0.mlp.c_proj.weight"] *= 0.5  # the damage
    hidden = {}
    for drift in (False, True):
        student = build(config(), values=values).eval()
        moments = Moments(*map_sums(student, text, [PROJ], teacher=teacher, drift=drift)[PROJ].means())
        best = moments.best(values[PROJ].astype(np.float64), ridge=1e-6)
        assert moments.error(best) < moments.error(values[PROJ])
        mended = build(config(), values=values | {PROJ: best.astype(np.float32)}).eval()
        hidden[drift] = _distance(mended, teacher, text)
    assert hidden[True] < hidden[False] < 1.2 * _distance(build(config(), values=values).eval(), teacher, text)


def _distance(model: GPT, teacher: GPT, text: list[np.ndarray]) -> float:
    with torch.inference_mode():
        inputs = torch.from_numpy(np.concatenate(text))
        streams: list[torch.Tensor] = []
        for one in (model, teacher):
            one.transformer.ln_f.register_forward_hook(lambda m, i, o: streams.append(i[0]))
            one.hidden(inputs)
        return (streams[0] - streams[1]).square().mean().item()
