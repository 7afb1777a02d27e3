"""A smaller cache: heads and layers that become one, moments with them, and `bonsai shrink` from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.adapt import shrunk_arrays, shrunk_config, shrunk_model
from bonsaigpt.checkpoint import Arrays, RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import ModelConfig, RunConfig, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import read_policy
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.torch_engine.kv.one_pass import OnePass
from bonsaigpt.torch_engine.model import GPT, build, weights

SIZES = {"n_layer": 4, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 11, "bias": True}
TEXT = torch.from_numpy(np.random.default_rng(0).integers(0, 11, (2, 16)))


def run_of(**changes: object) -> RunConfig:
    model = SIZES | {"position": {"kind": "rope"}} | changes
    return validate({"model": model, "train": {"batch_size": 10, "steps": 50, "compile": "on"}}, origin="test")


def values_of(model: ModelConfig) -> Arrays:
    found = {p.name: initial_value(p, 3) for p in parameters(model)}
    rng = np.random.default_rng(5)
    return {n: v + 0.05 * rng.standard_normal(v.shape, dtype=np.float32) for n, v in found.items() if n != "lm_head"}


def model_with(config: ModelConfig, values: Arrays) -> GPT:
    names = {p.name for p in parameters(config) if p.tied_to is None}
    return build(config, values={name: value for name, value in values.items() if name in names}).eval()


def logits(model: GPT) -> torch.Tensor:
    with torch.inference_mode():
        return model(TEXT)


def alike(values: Arrays, old: ModelConfig, heads: int) -> Arrays:
    """The same with heads of keys and values that are equal within ``heads`` groups."""
    found = dict(values)
    for name, value in values.items():
        if ".c_attn." in name:
            D = old.n_head * old.head_width
            parts = value[D:].reshape(2, heads, old.n_kv_head // heads, old.head_width, *value.shape[1:])
            same = np.broadcast_to(parts[:, :, :1], parts.shape).reshape(-1, *value.shape[1:])
            found[name] = np.concatenate([value[:D], same])
    return found


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_equal_heads_become_one_exactly_and_unequal_ones_do_not(heads: int, qk_norm: bool) -> None:
    old = run_of(attention={"qk_norm": qk_norm}).model
    new = shrunk_model(old, n_kv_head=heads)
    values = values_of(old)
    same = alike(values, old, heads)
    one, other = logits(model_with(old, same)), logits(model_with(new, shrunk_arrays(same, old, new)))
    assert (one - other).abs().max() < 1e-6
    one, other = logits(model_with(old, values)), logits(model_with(new, shrunk_arrays(values, old, new)))
    assert (one - other).abs().max() > 1e-3


def test_layers_that_make_the_same_share_exactly_and_others_do_not() -> None:
    """Blocks that add nothing hand their input on, so equal maps make equal keys and values."""
    old = run_of().model
    new = shrunk_model(old, share_kv=2, n_kv_head=None)
    values = values_of(old)
    for layer in (0, 2):  # the first of each pair
        block = f"transformer.h.{layer}"
        for name in ("attn.c_proj", "mlp.c_proj"):
            values[f"{block}.{name}.weight"] *= 0
            values[f"{block}.{name}.bias"] *= 0
    unequal = dict(values)
    for layer in (0, 2):
        for part in ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"):
            values[f"transformer.h.{layer + 1}.{part}"] = values[f"transformer.h.{layer}.{part}"]
    for made, equal in ((values, True), (unequal, False)):
        one, other = logits(model_with(old, made)), logits(model_with(new, shrunk_arrays(made, old, new)))
        assert ((one - other).abs().max() < 1e-6) == equal


@pytest.mark.parametrize("qk_norm", [False, "scaled"])
def test_moments_are_averaged_as_the_weights_are(qk_norm: bool | str) -> None:
    old = run_of(attention={"qk_norm": qk_norm}).model
    new = shrunk_model(old, n_kv_head=2, share_kv=2)
    rng = np.random.default_rng(0)
    name = "transformer.h.0.attn.c_attn.weight"
    weight = rng.standard_normal((96, 32)).astype(np.float32)
    state = {f"momentum.{name}": weight, "exp_avg.transformer.h.1.attn.c_attn.bias": weight[:, 0], "steps": weight[0]}
    found = shrunk_arrays(state, old, new)
    assert found["steps"] is state["steps"]
    np.testing.assert_array_equal(found[f"momentum.{name}"][:32], weight[:32])
    keys = weight[32:64].reshape(4, 8, 32)
    np.testing.assert_allclose(found[f"momentum.{name}"][40:48], (keys[2] + keys[3]) / 2, rtol=1e-6)
    assert found[f"momentum.{name}"].shape == (64, 32)
    np.testing.assert_array_equal(found["exp_avg.transformer.h.1.attn.c_attn.bias"], weight[:32, 0])
    after = shrunk_arrays(values_of(old), old, new)
    assert {name: value.shape for name, value in after.items()} == {p.name: p.shape for p in parameters(new)}
    moments = shrunk_arrays({f"exp_avg.{name}": value for name, value in values_of(old).items()}, old, new)
    assert moments.keys() == {f"exp_avg.{name}" for name in after}


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ({}, {"n_kv_head": 4}, "has 4 heads of keys and values, which can become 1 or 2"),
        ({}, {"n_kv_head": 3}, "which can become 1 or 2"),
        ({"attention": {"n_kv_head": 1}}, {"n_kv_head": 1}, "no fewer: leave it out"),
        ({"attention": {"share_kv": 2}}, {"share_kv": 3}, "a multiple, e.g. 4"),
        ({}, {"share_kv": 5}, "has 4 layers: use that at most"),
        ({"attention": {"kind": "linear"}}, {"share_kv": 2}, "model.attention.kind = 'linear'"),
        ({"structure": {"*.c_attn.weight": {"kind": "lowrank", "rank": 2}}}, {"n_kv_head": 1}, "merge it first"),
    ],
)
def test_what_cannot_be_shrunk_is_refused(model: dict[str, object], changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        shrunk_model(run_of(**model).model, **changes)


def test_training_descends_what_the_cache_will_cost() -> None:
    """The loss of a step, and of an evaluation, is that through the policy; without one it is another."""
    tokens = TEXT.numpy()
    batch = Batch(tokens_BT=tokens, targets_BT=np.roll(tokens, -1, axis=1), count=tokens.size)
    engine = load_engine("torch", device="cpu", threads=1)
    found = {}
    for kv in ("", "window(4), int2"):
        config = shrunk_config(run_of(), n_kv_head=1, kv=kv, steps=5)
        state = engine.init(config)
        sharp = {name: 8 * value for name, value in weights(state.model).items()}
        state = engine.init(config, sharp)
        found[kv] = engine.evaluate(engine.model_of(state), batch)[0] / tokens.size
        metrics = engine.step(state, batch, config=config, share=0.0, step=0).host()
        assert metrics["loss"] == pytest.approx(found[kv], abs=1e-5)
        if kv:
            bare = GPT(config.model)
            bare.load_state_dict(state.model.state_dict())
            bare.through = OnePass(config.model, read_policy(kv))
            assert engine.evaluate(bare, batch)[0] / tokens.size == pytest.approx(found[kv], abs=1e-5)
    assert abs(found[""] - found["window(4), int2"]) > 1e-3


def test_a_run_shrinks_and_goes_on(
    tmp_path: Path,
    tiny_text: Path,
    tiny_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    rope = ["--model.n_layer", "2", "--model.position.kind", "rope", "--data.tokenizer.kind", "chars"]
    flags = [*tiny_flags, *rope, "--optim.matrices.kind", "muon", "--train.steps", "8", "--train.eval_interval", "4"]
    assert main(["train", "my-text", "--data.path", "text.txt", *flags, "--name", "whole"]) == 0
    how = ["--train.compile", "off", "--train.attention_kernel", "sdpa", "--steps", "6"]
    shrink = ["shrink", "whole", "--n-kv-head", "1", "--share-kv", "2", "--kv", "window(4), int4", *how]
    assert main(shrink) == 0
    assert "read through window(4), int4" in capsys.readouterr().out
    made = RunDirectory.open(Path("runs/whole-shrunk"))
    assert made.config.model.kv_layers == (0,)
    assert made.config.train.kv == "window(4), int4"
    assert made.environment["shrunk"].startswith("runs/whole@")
    assert made.load("last").state["step"] == 6
    assert main(["eval", "runs/whole-shrunk", "--kv", "window(4), int4, chunk=1"]) == 0
    for words, why in [
        (["--kv", "windw(4)"], "windw"),
        (["--kv", "window(2)+h2o(3)"], "h2o chooses by what was read so far"),
        ([], "nothing is to become smaller"),
    ]:
        capsys.readouterr()
        assert main(["shrink", "whole", "--name", "other", *words]) == 2
        assert why in capsys.readouterr().err
        assert not Path("runs/other").exists()
