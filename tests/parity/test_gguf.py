"""GGUF files are read by others: transformers' own reader writes the same 200 tokens, and so does llama.cpp itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer
from bonsaigpt.errors import CheckpointError, OutputError
from bonsaigpt.interop.gguf_file import write_gguf
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import build, weights
from tests.data.texts import czech

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
ENGINE = TorchEngine(device="cpu")
BLOCK = 208

_LLAMA: dict[str, Any] = {"norm": {"kind": "rmsnorm"}, "position": {"kind": "rope"}, "mlp": {"kind": "swiglu"}}
_TANH = {"kind": "gelu", "approximate": "tanh"}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"mlp": _TANH, "bias": True},
    "gpt2, untied, no biases": {"mlp": _TANH, "tie_embeddings": False},
    "llama": _LLAMA | {"attention": {"n_kv_head": 2}, "tie_embeddings": False},
    "llama, neighbours, factors": _LLAMA
    | {
        "position": {"kind": "rope", "theta": 300.0, "pairs": "neighbours"},
        "structure": {"*.c_fc.weight": {"kind": "lowrank", "rank": 9}},
    },
    "qwen2": _LLAMA | {"attention": {"qkv_bias": True, "n_kv_head": 2}},
    # their reader takes a head of 128 for granted
    "qwen3": _LLAMA | {"attention": {"qk_norm": "scaled", "head_width": 128, "n_kv_head": 2}},
    "starcoder2": {"mlp": _TANH, "position": {"kind": "rope"}, "attention": {"n_kv_head": 2}},
}


def lively(name: str, vocabulary: int) -> tuple[ModelConfig, Arrays]:
    """A model that writes no loops: large weights."""
    block = 1024 if name.startswith("gpt2") else BLOCK  # which their reader takes for granted
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": block, "vocab_size": vocabulary}
    model = build(validate({"model": sizes | MODELS[name]}, origin="here").model, seed=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    return model.config, weights(model)


@torch.inference_mode()
def greedy(config: ModelConfig, values: Arrays, count: int = 200) -> list[int]:
    model = ENGINE.model(config, values)
    tokens, cache = torch.tensor([[3]]), ENGINE.cache(model, batch=1)
    written: list[int] = []
    for _ in range(count):
        tokens = model(tokens, cache=cache)[:, -1:].argmax(dim=-1)
        written.append(int(tokens))
    return written


def theirs(path: Path) -> Any:
    with torch.random.fork_rng():
        return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()


@pytest.mark.parametrize("name", MODELS)
def test_their_reader_writes_the_same_200_tokens(name: str, tmp_path: Path) -> None:
    config, values = lively(name, 257)
    path = tmp_path / "model.gguf"
    write_gguf(path, config, values, ByteTokenizer(), origin="this", name="this")
    model = theirs(path)
    found = model.generate(torch.tensor([[3]]), max_new_tokens=200, do_sample=False, eos_token_id=None)
    wanted = greedy(config, values)
    assert found[0, 1:].tolist() == wanted
    assert len(set(wanted)) > 12  # no loop, in which a wrong model would fall as well
    tokens = torch.randint(0, 257, (1, BLOCK), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = ENGINE.model(config, values)(tokens)
        assert (model(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11), ("q8_0", None), ("q4_0", None)])
def test_narrow_formats_round_as_they_say(dtype: Any, bits: int | None, tmp_path: Path) -> None:
    config, values = lively("llama", 257)
    path = tmp_path / "model.gguf"
    write_gguf(path, config, values, ByteTokenizer(), origin="this", name="this", dtype=dtype)
    found = {
        t.name: (t.tensor_type, gguf.quants.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors
    }
    ours = values["transformer.h.1.mlp.c_fc.weight"]
    kind, read = found["blk.1.ffn_up.weight"]
    assert kind.name == {"bf16": "BF16", "fp16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}[dtype]
    if bits is not None:
        assert (np.abs(read - ours) <= np.abs(ours) * 2.0**-bits + 1e-8).all()
    else:  # half a step of the group's largest (a whole one at q4_0's upper end), and its scale's rounding to fp16
        step = 0.5 / 127 if dtype == "q8_0" else 1 / 8
        largest = np.abs(ours.reshape(-1, 32)).max(axis=1)[:, None]
        assert (np.abs(read - ours).reshape(-1, 32) <= largest * (step + 2.0**-11) + 1e-8).all()
    assert not np.array_equal(read, ours)
    assert found["blk.1.attn_norm.weight"][0].name == "F32"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (_LLAMA | {"mlp": {"kind": "relu2"}}, "model.mlp.kind"),
        (_LLAMA | {"attention": {"window": 5}}, "model.attention.window"),
        (_LLAMA | {"bias": True}, "model.bias"),
        ({"bias": True}, "model.mlp.approximate"),
        (_LLAMA | {"position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 2.0}}}, "model.position.scaling"),
        (_LLAMA | {"logit_softcap": 5.0}, "model.logit_softcap"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 257}
    model = build(validate({"model": sizes | changes}, origin="here").model, seed=0)
    with pytest.raises(CheckpointError, match=named):
        write_gguf(tmp_path / "m.gguf", model.config, weights(model), ByteTokenizer(), origin="this", name="this")
    assert not list(tmp_path.iterdir())


def test_tokenizers(tmp_path: Path) -> None:
    text = czech(3000)
    for number, tokenizer in enumerate((BpeTokenizer.train([text], 400), ByteTokenizer())):
        config, values = lively("gpt2", tokenizer.vocab_size + 3)  # rows that no token has
        path = tmp_path / f"{number}.gguf"
        write_gguf(path, config, values, tokenizer, origin="this", name="this")
        fields = gguf.GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        assert len(tokens) == tokenizer.vocab_size + 3
        assert tokens[-1] == "<unused 2>"
        assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.end_of_text
        assert fields["tokenizer.ggml.token_type"].contents()[tokenizer.end_of_text] == 3
        if number == 0:
            read = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
            assert read(text)["input_ids"] == tokenizer.encode(text).tolist()
    config, values = lively("gpt2", 3)
    with pytest.raises(CheckpointError, match="no end of a text"):
        write_gguf(tmp_path / "no.gguf", config, values, CharTokenizer("abc"), origin="this", name="this")
    config, values = lively("gpt2", 257)
    with pytest.raises(OutputError, match="exists already"):
        write_gguf(tmp_path / "0.gguf", config, values, ByteTokenizer(), origin="this", name="this")


_LLAMA_CPP = """
import json, sys, xllamacpp as x
settings = x.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = sys.argv[1], 208, 1, False
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.cache_type_k = settings.cache_type_v = x.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
asked = {"prompt": sys.argv[2], "max_tokens": 150, "temperature": 0.0, "logprobs": 1}
answer = x.Server(settings).handle_completions(asked)
print(json.dumps(answer["choices"][0]["logprobs"]["content"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_writes_the_same_tokens(name: str, tmp_path: Path) -> None:
    """llama.cpp itself, from the wheel of ``xllamacpp``, with a cache of float32."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("pip install xllamacpp")
    config, values = lively(name, 257)
    for table in ("transformer.wte.weight", "lm_head.weight"):
        if table in values:  # it tells no tokens that end inside a character: none but printable ones are ever best
            values[table][:32] = values[table][127:] = 0.0
    path = tmp_path / "model.gguf"
    write_gguf(path, config, values, ByteTokenizer(), origin="this", name="this")
    prompt = "the old king arrived."
    command = [
        sys.executable,
        "-c",
        _LLAMA_CPP,
        str(path),
        prompt,
    ]  # torch's threads and its own get in each other's way
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    ids = ByteTokenizer().encode(prompt).tolist()
    written = [each["id"] for each in told]
    assert len(written) == 150
    with torch.inference_mode():
        ours = ENGINE.model(config, values)(torch.tensor([ids + written]))[0, len(ids) - 1 : -1].log_softmax(dim=-1)
    assert ours.argmax(dim=-1).tolist() == written
    theirs_of = torch.tensor([each["logprob"] for each in told])
    # its GELU is read from a table of 16-bit numbers
    limit = 1e-2 if config.mlp.kind == "gelu" else 5e-5
    assert (ours[range(150), written] - theirs_of).abs().max() <= limit
