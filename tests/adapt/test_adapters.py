"""Adapters: fresh ones change nothing, they alone are trained, merging is exact, a file gives the model back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.adapt.adapters import (
    ADAPTERS_ALONE,
    EMBEDDING_AND_HEAD,
    AdapterKind,
    Tuned,
    adapted_model,
    adapted_names,
    merged_model,
    read_adapter,
    write_adapter,
)
from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import RunConfig, derive, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.errors import CheckpointError, ConfigError
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import build

ENGINE = TorchEngine(device="cpu", precision="fp32", workers=1)
KINDS: list[AdapterKind] = ["lora", "dora", "lokr"]
TOKENS = torch.randint(0, 257, (4, 12), generator=torch.Generator().manual_seed(2))


def dense(**model: Any) -> tuple[RunConfig, Arrays]:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 257} | model
    config = validate({"model": sizes, "train": {"batch_size": 4}}, origin="test")
    table = [p for p in parameters(config.model) if p.tied_to is None]
    return config, {p.name: 3 * initial_value(p, 1) for p in table}


def tuned(kind: AdapterKind, globs: tuple[str, ...] = ("transformer.h.*", "transformer.wte.weight")) -> Tuned:
    """A few steps of adapters alone."""
    base, values = dense()
    model, values = adapted_model(base.model, values, adapted_names(base.model, globs), kind, 2, seed=5)
    optim = {"lr": 0.05, "lr_scale": ADAPTERS_ALONE, "grad_clip": 0.0}
    config = derive(base, model=model.model_dump(exclude_none=True), optim=optim)
    state = ENGINE.init(config, values)
    tokens = TOKENS.numpy()
    batch = Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=44)
    for step in range(3):
        ENGINE.step(state, batch, config=config, share=1.0, step=step)
    return Tuned(config=config, weights=ENGINE.arrays(state)[0], tokenizer=ByteTokenizer(), data="these")


def logits(config: RunConfig, values: Arrays) -> torch.Tensor:
    with torch.inference_mode():
        return build(config.model, values=values).eval()(TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_merge_exactly(kind: AdapterKind) -> None:
    base, values = dense()
    names = adapted_names(base.model, ["*.attn.*", "transformer.wte.weight"])
    model, adapted = adapted_model(base.model, values, names, kind, 3, seed=5)
    config = derive(base, model=model.model_dump(exclude_none=True))
    before = logits(base, values)
    assert (logits(config, adapted) - before).abs().max() < 1e-5 * before.abs().max()

    made = tuned(kind)
    ours = logits(made.config, made.weights)
    assert (ours - before).abs().max() > 0.05 * before.abs().max()  # they have learned something
    plain, merged = merged_model(made.config.model, made.weights)
    assert not plain.structure
    assert merged.keys() == values.keys()
    after = logits(derive(base, model=plain.model_dump(exclude_none=True)), merged)
    assert (after - ours).abs().max() < 1e-5 * ours.abs().max()
    decoded = ENGINE.next_logits(ENGINE.model(made.config.model, made.weights), TOKENS.numpy())
    assert np.abs(decoded - ours[:, -1].numpy()).max() < 1e-5 * float(ours.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_are_trained(kind: AdapterKind) -> None:
    _, values = dense()
    made = tuned(kind)
    same = [np.array_equal(value, values[name]) for name, value in made.weights.items() if name in values]
    assert same
    assert all(same)
    for name, value in made.weights.items():
        if name.endswith(".base"):
            assert np.array_equal(value, values[name.removesuffix(".base")])
        elif ".delta." in name or name.endswith(".magnitude"):
            assert np.abs(value).max() > 0
    trained = sum(v.size for n, v in made.weights.items() if made.config.optim.scale_of(n) > 0)
    assert trained < 0.5 * sum(v.size for v in made.weights.values())
    _, optimizer = ENGINE.arrays(ENGINE.restore(made.config, made.weights, {}))
    assert set(optimizer) == {"guard"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_beside_the_base_gives_the_model_back(kind: AdapterKind, tmp_path: Path) -> None:
    _, values = dense()
    made = tuned(kind)
    rows = np.ones((3, 16), np.float32)  # of new tokens
    table = np.concatenate([made.weights["transformer.wte.weight.base"], rows])
    weights = made.weights | {"transformer.wte.weight.base": table}
    if kind == "lokr":  # the sides of its products are those of the whole table, so a file has them for one size alone
        weights, rows = made.weights, rows[:0]
    else:
        grown = derive(made.config, model={"vocab_size": 260})
        for name, shape in ((p.name, p.shape) for p in parameters(grown.model) if p.tied_to is None):
            more = np.zeros((shape[0] - len(weights[name]), *shape[1:]), np.float32)
            weights[name] = np.concatenate([weights[name], more])
        made = replace(made, config=grown, weights=weights)
    path = tmp_path / "small.safetensors"
    size = write_adapter(path, made, values, label="runs/base@7")
    assert size == path.stat().st_size
    beyond = sum(v.nbytes for n, v in weights.items() if ".delta." in n or n.endswith(".magnitude")) + rows.nbytes
    assert beyond < size < beyond + 12_000
    again = read_adapter(path, values)
    assert again.config == made.config
    assert again.data == "these"
    assert {n: v.tobytes() for n, v in again.weights.items()} == {n: v.tobytes() for n, v in weights.items()}


def test_what_was_trained_whole_is_in_the_file(tmp_path: Path) -> None:
    """The embedding and the head, where tokens were added."""
    _, values = dense()
    made = tuned("lora", ("transformer.h.*",))
    scales = ADAPTERS_ALONE | dict.fromkeys(EMBEDDING_AND_HEAD, 1.0)
    weights = made.weights | {"transformer.wte.weight": made.weights["transformer.wte.weight"] + 1}
    whole = replace(made, weights=weights, config=derive(made.config, optim={"lr_scale": scales}))
    write_adapter(path := tmp_path / "small.safetensors", whole, values, label="runs/base@7")
    again = read_adapter(path, values).weights
    assert {n: v.tobytes() for n, v in again.items()} == {n: v.tobytes() for n, v in weights.items()}
    with pytest.raises(CheckpointError, match="is not as runs/base@7 has it"):  # the same values, said to be frozen
        write_adapter(tmp_path / "no", replace(made, weights=weights), values, label="runs/base@7")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    base, values = dense()
    made, path = tuned("lora"), tmp_path / "small.safetensors"
    write_adapter(path, made, values, label="runs/base@7")
    other = {name: value + 1 for name, value in values.items()}
    with pytest.raises(CheckpointError, match="trained on other weights, those of runs/base@7"):
        read_adapter(path, other)
    with pytest.raises(CheckpointError, match="is not as runs/x has it"):
        write_adapter(tmp_path / "no", made, other, label="runs/x")
    assert not (tmp_path / "no").exists()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="is not an adapter's file"):
        read_adapter(path, values)
    with pytest.raises(ConfigError, match="matches no weight"):
        adapted_names(base.model, ["*.c_nothing.*"])
    with pytest.raises(ConfigError, match="made of factors already"):
        adapted_names(made.config.model, ["*.c_fc.*"])
    with pytest.raises(ConfigError, match="no adapters to merge"):
        merged_model(base.model, values)
