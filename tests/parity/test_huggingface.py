"""GPT-2 as the transformers library has it, from a folder that it saved: equal logits, equal loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.checkpoint import check_weights
from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import CheckpointError
from bonsaigpt.interop import read_gpt2
from bonsaigpt.torch_engine.engine import TorchEngine

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
ENGINE = TorchEngine(device="cpu")


@pytest.fixture
def theirs(tmp_path: Path):
    """A small GPT2LMHeadModel with random weights, large enough that every part matters; saved to a folder."""
    config = transformers.GPT2Config(
        n_layer=3, n_head=4, n_embd=48, n_positions=40, vocab_size=101, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(tmp_path / "hf")
    return model


def test_equal_logits_and_loss(theirs, tmp_path: Path) -> None:
    config, arrays = read_gpt2(tmp_path / "hf")
    ours = ENGINE.model(config, arrays)
    tokens = torch.randint(0, 101, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens, labels=tokens)
        logits = ours(tokens)
    assert expected.logits.abs().max() > 0.5
    assert (logits - expected.logits).abs().max().item() <= 1e-5
    batch = Batch(tokens_BT=tokens[:, :-1].numpy(), targets_BT=tokens[:, 1:].numpy(), count=3 * 39)
    loss_sum, _ = ENGINE.evaluate(ours, batch)
    assert loss_sum / batch.count == pytest.approx(expected.loss.item(), abs=1e-5)


@pytest.mark.parametrize("name", ["transformer.h.1.attn.c_proj.weight", "transformer.h.2.ln_2.bias"])
def test_the_comparison_notices_one_wrong_tensor(theirs, tmp_path: Path, name: str) -> None:
    config, arrays = read_gpt2(tmp_path / "hf")
    array = arrays[name]
    arrays[name] = np.ascontiguousarray(array.T) if array.ndim == 2 else array + 0.1
    ours = ENGINE.model(config, arrays)
    tokens = torch.randint(0, 101, (1, 20))
    with torch.inference_mode():
        assert (ours(tokens) - theirs(tokens).logits).abs().max().item() > 1e-3


def test_tanh_and_erf_gelu_are_told_apart(theirs, tmp_path: Path) -> None:
    config, arrays = read_gpt2(tmp_path / "hf")
    assert config.mlp.kind == "gelu"
    assert config.mlp.approximate == "tanh"
    erf = config.model_copy(update={"mlp": config.mlp.model_copy(update={"approximate": "none"})})
    tokens = torch.randint(0, 101, (1, 20))
    with torch.inference_mode():
        difference = (ENGINE.model(erf, arrays)(tokens) - theirs(tokens).logits).abs().max().item()
    assert difference > 1e-5  # the famous trap: small enough to be overlooked, large enough to matter


def test_what_cannot_be_read_is_refused_by_name(theirs, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama' model"):
        read_gpt2(folder)
    (folder / "config.json").write_text(json.dumps(described | {"activation_function": "relu"}))
    with pytest.raises(CheckpointError, match="relu"):
        read_gpt2(folder)
    (folder / "config.json").write_text(json.dumps(described | {"n_layer": 4}))
    with pytest.raises(CheckpointError, match=r"h\.3\.ln_1\.weight"):
        read_gpt2(folder)
    for wrong in (["gpt2"], {"model_type": "gpt2"}, described | {"n_head": 5}):
        (folder / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_gpt2(folder)
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        read_gpt2(folder)


def test_extra_tensors_are_refused_by_check_weights(theirs, tmp_path: Path) -> None:
    config, arrays = read_gpt2(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="does not know"):
        check_weights(arrays | {"transformer.extra": np.zeros(1, np.float32)}, config, origin="x")
