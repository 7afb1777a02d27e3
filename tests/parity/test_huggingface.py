"""Models of the transformers library, from folders that it saved: equal logits, and the same tensors back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.checkpoint import check_weights
from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import CheckpointError
from bonsaigpt.interop import read_folder
from bonsaigpt.interop.families import FAMILIES, differences
from bonsaigpt.interop.family import entries
from bonsaigpt.torch_engine.engine import TorchEngine

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
ENGINE = TorchEngine(device="cpu")
VOCABULARY, BLOCK = 101, 40

_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": BLOCK,
    "vocab_size": VOCABULARY,
}
_GPT2: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 48, "n_positions": BLOCK, "vocab_size": VOCABULARY}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10, "rope_theta": 5e3}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
    "rope_theta": 5e5,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT2),
    "gpt2, erf, untied, narrow": (
        "GPT2",
        _GPT2 | {"activation_function": "gelu", "tie_word_embeddings": False, "n_inner": 72},
    ),
    "llama": ("Llama", _LLAMA),
    "llama 3, tied": ("Llama", _LLAMA | {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama, biases, wide heads": ("Llama", _LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama, linear": (
        "Llama",
        _LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "smollm": (
        "Llama",
        _LLAMA | {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36, "tie_word_embeddings": True},
    ),
    "mistral": ("Mistral", _LLAMA | {"sliding_window": 9, "rms_norm_eps": 1e-5}),
    "mistral, no window": ("Mistral", _LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2", _LLAMA | {"tie_word_embeddings": True, "rope_parameters": _YARN}),
    "qwen2, windows": (
        "Qwen2",
        _LLAMA | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", _LLAMA | {"head_dim": 16}),
    "starcoder2": ("Starcoder2", _LLAMA | {"sliding_window": 11}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """For each shape a model with random weights, large enough that every part matters, and the folder it is in."""
    made: dict[str, tuple[Any, Path]] = {}
    for number, (name, (family, settings)) in enumerate(SHAPES.items()):
        config = getattr(transformers, f"{family}Config")(**settings, bos_token_id=0, eos_token_id=0)
        torch.manual_seed(number)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.05)
        folder = tmp_path_factory.mktemp("saved") / "hf"
        model.save_pretrained(folder)
        made[name] = model, folder
    return made


def _tokens(rows: int = 3) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, BLOCK), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SHAPES)
def test_equal_logits_and_loss(saved, name: str) -> None:
    theirs, folder = saved[name]
    config, arrays = read_folder(folder)
    ours, tokens = ENGINE.model(config, arrays), _tokens()
    with torch.inference_mode():
        expected = theirs(tokens, labels=tokens)
        logits = ours(tokens)
    assert expected.logits.abs().max() > 0.5
    assert (logits - expected.logits).abs().max().item() <= 1e-5
    batch = Batch(tokens_BT=tokens[:, :-1].numpy(), targets_BT=tokens[:, 1:].numpy(), count=3 * (BLOCK - 1))
    loss_sum, _ = ENGINE.evaluate(ours, batch)
    assert loss_sum / batch.count == pytest.approx(expected.loss.item(), abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_tensors_come_back(saved, name: str) -> None:
    theirs, folder = saved[name]
    config, arrays = read_folder(folder)
    family = FAMILIES[theirs.config.model_type]
    assert differences(family, config) == []
    back = {n: a for entry in entries(family, config) for n, a in entry.split(arrays[entry.ours]).items()}
    wanted = {n: t.numpy() for n, t in theirs.state_dict().items()}
    if config.tie_embeddings:
        wanted.pop("lm_head.weight")
    assert back.keys() == wanted.keys()
    assert all(np.array_equal(back[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gpt2", "transformer.h.1.attn.c_proj.weight"),
        ("gpt2", "transformer.h.2.ln_2.bias"),
        ("qwen2", "transformer.h.0.attn.c_attn.bias"),
        ("qwen3", "transformer.h.2.attn.k_norm"),
        ("llama, biases, wide heads", "transformer.h.1.mlp.c_proj.bias"),
    ],
)
def test_the_comparison_notices_one_wrong_tensor(saved, name: str, tensor: str) -> None:
    theirs, folder = saved[name]
    config, arrays = read_folder(folder)
    array = arrays[tensor]
    arrays[tensor] = np.ascontiguousarray(array.T) if array.ndim == 2 else array[::-1] + 0.1
    ours, tokens = ENGINE.model(config, arrays), _tokens(1)
    with torch.inference_mode():
        assert (ours(tokens) - theirs(tokens).logits).abs().max().item() > 1e-3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "gpt2",
            {"mlp": {"kind": "gelu", "approximate": "none"}},
        ),  # the famous trap: small, and large enough to matter
        ("llama 3, tied", {"position": {"kind": "rope", "theta": 5e5}}),
        ("mistral", {"attention": {"window": 10, "n_kv_head": 2}}),
        ("qwen2, windows", {"attention": {"window": 7, "pattern": "SLL", "n_kv_head": 2, "qkv_bias": True}}),
        ("llama", {"norm": {"kind": "rmsnorm", "eps": 1e-4}}),
    ],
)
def test_the_comparison_notices_one_wrong_setting(saved, name: str, changes: dict[str, Any]) -> None:
    theirs, folder = saved[name]
    config, arrays = read_folder(folder)
    other = type(config).model_validate(config.model_dump() | changes)
    tokens = _tokens(1)
    with torch.inference_mode():
        assert (ENGINE.model(other, arrays)(tokens) - theirs(tokens).logits).abs().max().item() > 1e-5


def test_shards_and_half_precision_read_as_one_file(saved, tmp_path: Path) -> None:
    theirs, folder = saved["qwen3"]
    config, whole = read_folder(folder)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    again, arrays = read_folder(tmp_path / "shards")
    assert again == config
    assert all(np.array_equal(arrays[n], whole[n]) for n in whole)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = type(theirs)(theirs.config)
        narrow.load_state_dict(theirs.state_dict())
        narrow.to(dtype).save_pretrained(tmp_path / str(dtype))
        _, arrays = read_folder(tmp_path / str(dtype))
        for entry in entries(FAMILIES["qwen3"], config):
            wanted = torch.cat([narrow.state_dict()[n] for n in entry.theirs])
            assert np.array_equal(arrays[entry.ours], wanted.float().numpy())


def test_older_spellings_of_the_settings(saved, tmp_path: Path) -> None:
    """rope_theta and rope_scaling as files from before transformers 5 have them, and names without their beginning."""
    from safetensors.numpy import load_file, save_file

    for name, scaling in (("llama 3, tied", _LLAMA3), ("qwen2", _YARN)):
        _, folder = saved[name]
        config, whole = read_folder(folder)
        told = json.loads((folder / "config.json").read_text())
        told.pop("rope_parameters")
        rest = dict(scaling)
        told |= {"rope_theta": rest.pop("rope_theta"), "rope_scaling": rest}
        old = tmp_path / name
        old.mkdir()
        (old / "config.json").write_text(json.dumps(told))
        tensors = load_file(folder / "model.safetensors")
        tensors = {n.removeprefix("model."): a for n, a in tensors.items()}
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        save_file(tensors, old / "model.safetensors")
        again, arrays = read_folder(old)
        assert again == config
        assert all(np.array_equal(arrays[n], whole[n]) for n in whole)


def _spoilt(saved, name: str, tmp_path: Path, changes: dict[str, Any]) -> Path:
    """A copy of a folder with another config.json."""
    _, folder = saved[name]
    target = tmp_path / "spoilt"
    target.mkdir(exist_ok=True)
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    told = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps({n: v for n, v in told.items() if v != "gone"}))
    return target


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("gpt2", {"model_type": "bert"}, "'bert' model"),
        ("gpt2", {"activation_function": "relu"}, "relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"n_layer": 4}, r"h\.3\.ln_1\.weight"),
        ("gpt2", {"n_head": 5}, r"config\.json"),
        ("gpt2", {"n_embd": "gone"}, "n_embd"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "each kind of layer"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"attention_bias": True}, "attention_bias = True with mlp_bias = False"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama", {"hidden_act": "relu"}, "differ: a ReLU gate"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("qwen2", {"rope_parameters": _YARN | {"attention_factor": 2.0}}, "attention_factor"),
        ("qwen2", {"rope_parameters": _YARN | {"mscale": 1.0}}, "mscale"),
        ("qwen3", {"model_type": "llama"}, r"holds model\.layers\.0\.self_attn\.k_norm\.weight"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    saved, tmp_path: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_folder(_spoilt(saved, name, tmp_path, changes))


def test_a_yarn_factor_that_is_the_default_is_read(saved, tmp_path: Path) -> None:
    spelt_out = _YARN | {"attention_factor": 0.1 * np.log(4.0) + 1.0}
    config, _ = read_folder(_spoilt(saved, "qwen2", tmp_path, {"rope_parameters": spelt_out}))
    assert config == read_folder(saved["qwen2"][1])[0]


def test_extra_tensors_are_refused_by_check_weights(saved) -> None:
    config, arrays = read_folder(saved["gpt2"][1])
    with pytest.raises(CheckpointError, match="does not know"):
        check_weights(arrays | {"transformer.extra": np.zeros(1, np.float32)}, config, origin="x")
