"""What we write is loaded by transformers' stock classes and says the same; what it cannot say is refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bonsaigpt.config import validate
from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer, open_tokenizer
from bonsaigpt.errors import CheckpointError, OutputError
from bonsaigpt.interop import read_folder
from bonsaigpt.interop.families import FAMILIES
from bonsaigpt.interop.writing import write_folder
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build, weights
from tests.data.texts import chinese, czech, python, unicode
from tests.torch_engine.variants import VARIANTS, variant

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
ENGINE = TorchEngine(device="cpu")
TOKENIZER = CharTokenizer("abcdefghijklmnopq")

_ROPE = {"kind": "rope", "theta": 500.0}
_RMS = {"kind": "rmsnorm"}
MORE: dict[str, dict[str, Any]] = {
    "llama": {"norm": _RMS, "position": _ROPE, "mlp": {"kind": "swiglu"}, "attention": {"n_kv_head": 2}},
    "llama, biases, relu2": {"norm": _RMS, "position": _ROPE, "mlp": {"kind": "relu2"}, "bias": True},
    "llama, mup": {"norm": _RMS, "position": _ROPE, "mlp": {"kind": "swiglu"}, "mup_base": 12},
    "gpt2, mup": {"mup_base": 12, "bias": True},
    "mistral": {"norm": _RMS, "position": _ROPE, "mlp": {"kind": "swiglu"}, "attention": {"window": 5}},
    "qwen2": {"norm": _RMS, "position": _ROPE, "mlp": {"kind": "swiglu"}, "attention": {"qkv_bias": True}},
    "qwen2 with biases of zero": {
        "norm": _RMS,
        "position": _ROPE,
        "mlp": {"kind": "swiglu"},
        "attention": {"window": 5, "pattern": "SSL"},
    },
    "qwen3, neighbours, no scale": {
        "norm": _RMS | {"scale": False},
        "position": _ROPE | {"pairs": "neighbours", "scaling": {"kind": "ntk", "factor": 3.0}},
        "mlp": {"kind": "relu2"},
        "attention": {"qk_norm": True, "n_kv_head": 2, "window": 6, "pattern": "SL"},
        "vocab_multiple": 8,
    },
    "qwen3, neighbours, factors": {
        "norm": _RMS,
        "position": _ROPE | {"pairs": "neighbours"},
        "mlp": {"kind": "swiglu"},
        "attention": {"qk_norm": "scaled", "head_width": 12},
    },
    "starcoder2, windows": {"position": _ROPE, "attention": {"n_kv_head": 2, "window": 7}, "mlp": {"kind": "relu2"}},
}
REFUSED = {
    "post-norm": "model.norm_position",
    "swiglu": "model.mlp.kind",
    "rmsnorm": "model.norm.kind",
    "norm without scale": "model.norm.kind",
    "soft cap, padded vocabulary": "model.logit_softcap",
    "qk-norm": "model.attention.qk_norm",
    "qk-norm with factors, wide heads": "model.mlp.kind",
    "biases of queries, keys and values": "model.attention.qkv_bias",
    "grouped queries": "model.attention.n_kv_head",
    "multi-query": "model.attention.n_kv_head",
    "sliding windows": "model.attention.pattern",
    "sinks": "model.attention.sinks",
    "sinks in windows": "model.attention.sinks",
    "shared keys and values": "model.attention.share_kv",
    "shared, in windows": "model.attention.share_kv",
    **{name: "model.mlp.kind" for name, settings in VARIANTS.items() if settings.get("mlp", {}).get("kind") == "moe"},
    **{name: "model.attention.kind" for name in VARIANTS if name.startswith(("latent", "linear"))},
}
MAPPED = [name for name in [*VARIANTS, *MORE] if name not in REFUSED]


def lively(name: str) -> GPT:
    """Weights at which every part matters."""
    if name in VARIANTS:
        config = variant(name)
    else:
        sizes = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 17}
        config = validate({"model": sizes | MORE[name]}, origin="more").model
    model = build(config, seed=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def exported(model: GPT, folder: Path, tokenizer: Tokenizer = TOKENIZER, **more: Any) -> Any:
    write_folder(folder, model.config, weights(model), tokenizer, origin="this", card="# This\n", **more)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.filterwarnings("ignore:`rope_parameters`")
@pytest.mark.parametrize("name", MAPPED)
def test_stock_classes_give_the_same_logits(name: str, tmp_path: Path) -> None:
    ours = lively(name)
    theirs = exported(ours, tmp_path / "out")
    tokens = torch.randint(0, 17, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, found = ours(tokens), theirs(tokens).logits
        assert expected.abs().max() > 0.5
        assert found.shape == expected.shape
        assert (found - expected).abs().max().item() <= 1e-5
        config, values = read_folder(tmp_path / "out")  # and we read what we wrote
        assert (ENGINE.model(config, values)(tokens) - expected).abs().max().item() <= 1e-5


@pytest.mark.parametrize(("name", "setting"), REFUSED.items())
def test_what_cannot_be_said_is_refused_by_the_name_of_the_setting(name: str, setting: str, tmp_path: Path) -> None:
    model = lively(name)
    with pytest.raises(CheckpointError, match=setting.replace(".", r"\.")):
        write_folder(tmp_path / "out", model.config, weights(model), TOKENIZER, origin="this", card="")
    assert not (tmp_path / "out").exists()


def test_the_comparison_notices_what_was_left_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: without one of the steps between our settings and theirs the logits differ."""
    tokens = torch.randint(0, 17, (1, 24), generator=torch.Generator().manual_seed(3))
    for name, step, nothing in (
        ("qwen3, neighbours, factors", "bonsaigpt.interop.equivalents._turn_halves", lambda *_: None),
        ("llama, mup", "bonsaigpt.config.ModelConfig.width_ratio", 1.0),
    ):
        ours = lively(name)
        with monkeypatch.context() as patch:
            patch.setattr(step, nothing)
            theirs = exported(ours, tmp_path / name)
        with torch.inference_mode():
            assert (theirs(tokens).logits - ours(tokens)).abs().max().item() > 1e-3, name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_rounds_to_the_nearest(dtype: Any, tmp_path: Path) -> None:
    model = lively("llama")
    theirs = exported(model, tmp_path / "out", dtype=dtype)
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    head = model.transformer.h[1].attn.c_attn.weight.detach().to(wanted)
    parts = [theirs.state_dict()[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert all(part.dtype == wanted for part in parts)
    assert torch.equal(torch.cat(parts), head)


_LOOK_ALIKES = (
    "<|endoftext", "|endoftext|>", "<|EndOfText|>", "< |endoftext|>", "<|endoftext |>", "<|im_start|>", "<s>", "</s>",
    "<unk>", "<unknown>", "[UNK]", "[PAD]", "##ing", "\u2581the", "\u0120the", "<0x0A>",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
)  # fmt: skip
"""What is a special token or a piece elsewhere, or almost one here; and a family in one glyph."""


def mixed(size: int) -> str:
    """Several languages, source code, odd characters and what looks like special tokens, at least ``size`` bytes."""
    rng = random.Random(1)
    strange = "".join(rng.choice(_LOOK_ALIKES) + rng.choice(["", " ", "\n", "  x"]) for _ in range(size // 40))
    return czech(size // 4) + chinese(size // 4) + python(size // 4) + strange + unicode(size // 4 + 1)


@pytest.mark.parametrize("size", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["chars", "bytes", "bpe", "bpe, gpt4's pieces", "gpt2"])
def test_token_ids_are_the_same(kind: str, size: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = mixed(size)
    assert len(text.encode()) >= size
    tokenizer: Tokenizer
    if kind == "chars":
        tokenizer = CharTokenizer(text)
    elif kind == "bytes":
        tokenizer = ByteTokenizer()
    elif kind == "gpt2":
        tokenizer = open_tokenizer(request.getfixturevalue("shared_data") / "gpt2-bpe")
    else:
        tokenizer = BpeTokenizer.train([text[::7]], 600, split="gpt4" if "gpt4" in kind else "gpt2")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": tokenizer.vocab_size}
    model = build(validate({"model": sizes}, origin="here").model, seed=0)
    exported(model, tmp_path / "out", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    found = theirs(text, verbose=False)["input_ids"]
    assert found == tokenizer.encode(text).tolist()
    assert theirs.decode(found[:5000]) == tokenizer.decode(found[:5000])
    assert theirs.eos_token_id == tokenizer.end_of_text
    if kind != "chars":
        swapped = tokenizer.decode(found).replace("e", "a")
        assert theirs(swapped, verbose=False)["input_ids"] != found  # the negative control
    else:
        with pytest.raises(Exception, match="UNK"):
            theirs("\N{SNOWMAN}\N{COMET}")


def test_generation_stops_where_ours_does_and_names_nobody_elses_tokens(tmp_path: Path) -> None:
    theirs = exported(lively("llama"), tmp_path / "out")
    assert theirs.generation_config.eos_token_id is None  # and not Llama's 2
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["eos_token_id"] is None
    assert told["model_type"] in FAMILIES
    text = theirs.generate(torch.tensor([[2]]), max_new_tokens=12, do_sample=False)
    assert text.shape == (1, 13)
    with pytest.raises(OutputError, match="exists already"):
        exported(lively("llama"), tmp_path / "out")
