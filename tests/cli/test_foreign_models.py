"""A folder in Hugging Face's format is a model like any other for the verbs, and `train --init` goes on from it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bonsaigpt.adapt import fitted_arrays
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.cli.common import open_model
from bonsaigpt.data.tokenizers import BpeTokenizer
from bonsaigpt.interop import read_folder
from bonsaigpt.interop.families import FAMILIES
from bonsaigpt.interop.family import entries
from bonsaigpt.interop.huggingface import model_config
from tests.interop.test_torch_files import ARGS, nanogpt

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 12}
QWEN = {
    "model_type": "qwen2",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 4096,
}


def made(folder: Path, text: str, told: dict[str, object], *, padding: int = 0) -> Path:
    """A model's folder with random weights and a BPE of the text."""
    tokenizer = BpeTokenizer.train([text], 270)
    told = told | {"vocab_size": tokenizer.vocab_size + padding}
    family, config = model_config(told, origin="here")
    values = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_json())["tokenizer"]))
    tensors = {
        name: values.standard_normal(shape, dtype=np.float32) / 4
        for entry in entries(FAMILIES[family.model_type], config)
        for name, shape in zip(entry.theirs, entry.shapes, strict=True)
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def place(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    return tmp_path


TRAIN = ("train", "my-text", "--data.path", "text.txt", "--train.device", "cpu", "--train.batch_size", "2")
STILL = ("--optim.lr", "1e-30", "--optim.weight_decay", "0", "--optim.matrices.kind", "adamw")
QUICK = (
    *STILL,
    "--train.steps",
    "1",
    "--train.compile",
    "off",
    "--train.precision",
    "fp32",
    "--train.tensorboard",
    "false",
)


def test_training_goes_on_from_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(place / "models" / "small", (place / "text.txt").read_text(), GPT2)
    _, theirs = read_folder(folder)
    assert main([*TRAIN, *QUICK, "--init", "models/small", "--name", "on", "--model.dropout", "0.1"]) == 0
    assert "model and tokenizer are those of models/small" in capsys.readouterr().out
    run = RunDirectory.open(place / "runs" / "on")
    begun = run.load("1").model
    assert begun.keys() == theirs.keys()
    assert all(np.array_equal(begun[name], theirs[name]) for name in theirs)
    assert (run.config.model.block_size, run.config.model.dropout, run.config.model.bias) == (12, 0.1, True)
    assert run.tokenizer.to_json() == open_model("models/small").tokenizer.to_json()
    assert main([*TRAIN, *QUICK, "--init", "models/small", "--name", "short", "--model.block_size", "8"]) == 0
    assert "at a context of 8 tokens instead of 12" in capsys.readouterr().out
    cut = RunDirectory.open(place / "runs" / "short").load("1").model["transformer.wpe.weight"]
    assert np.array_equal(cut, theirs["transformer.wpe.weight"][:8])
    longer = fitted_arrays(theirs, run.config.model, run.config.model.model_copy(update={"block_size": 24}))
    assert np.array_equal(longer["transformer.wpe.weight"][::2], theirs["transformer.wpe.weight"])


def test_rows_of_no_token_are_padding(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Qwen's embedding has more rows than its tokenizer tokens; and a recipe's context stays where it is shorter."""
    made(place / "qwen", (place / "text.txt").read_text(), QWEN, padding=50)
    opened = open_model("qwen")
    assert opened.config.vocabulary == opened.tokenizer.vocab_size
    assert opened.config.vocabulary_rows == opened.tokenizer.vocab_size + 50 == len(opened.weights["lm_head.weight"])
    (place / "short.toml").write_text('extends = "my-text"\n[model]\nblock_size = 16\n')
    train = [word.replace("my-text", "short.toml") for word in TRAIN]
    assert main([*train, *QUICK, "--init", "qwen", "--name", "on"]) == 0
    run = RunDirectory.open(place / "runs" / "on")
    assert run.config.model.block_size == 16
    assert run.config.model.attention.kind == "softmax"
    assert run.config.model.attention.qkv_bias
    capsys.readouterr()
    assert main(["sample", "qwen", "--prompt", "the cat", "--tokens", "8", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("the cat")
    assert main(["eval", "qwen", "--text", "text.txt", "--device", "cpu"]) == 0


def test_what_does_not_fit_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(place / "small", (place / "text.txt").read_text(), GPT2)
    bytes_too = ["--data.tokenizer.kind", "bytes"]
    assert main([*TRAIN, *QUICK, "--init", "small", "--name", "no", *bytes_too]) == 2
    assert "another tokenizer" in capsys.readouterr().err
    assert main([*TRAIN, *QUICK, "--init", "small", "--name", "no", "--model.n_embd", "32"]) == 2
    assert "n_embd" in (told := capsys.readouterr().err) or "shape" in told
    (folder / "tokenizer.json").unlink()
    assert main([*TRAIN, *QUICK, "--init", "small", "--name", "no"]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_export_writes_a_folder_that_says_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [*TRAIN, *QUICK, "--model.n_layer", "1", "--model.n_embd", "16", "--model.block_size", "8"]
    assert main([*train, "--name", "small", "--data.tokenizer.kind", "bytes"]) == 0
    assert main(["export", "small", "--to", "hf"]) == 0
    folder = place / "runs" / "small" / "export" / "hf"
    card = (folder / "README.md").read_text()
    evaluated = json.loads((place / "runs" / "small" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| validation loss, nats a token | {evaluated['val_loss']:.4f} |" in card
    assert "bonsai train my-text" in card
    capsys.readouterr()
    for model in ("small", str(folder)):
        assert main(["eval", model, "--text", "text.txt", "--device", "cpu", "--json"]) == 0
    run, back = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert run["loss"] == pytest.approx(back["loss"], abs=1e-6)
    assert run["bits_per_byte"] == pytest.approx(back["bits_per_byte"], abs=1e-6)
    assert main(["export", "small", "--to", "hf"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "hf"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "hf", "--out", "again"]) == 0
    assert (place / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_card_begins_with_text_that_the_model_knows(place: Path) -> None:
    """An alphabet without a capital T, or with digits alone."""
    Path("low.txt").write_text("so it was, and nobody knew. " * 200)
    train = [*TRAIN, *QUICK, "--model.n_layer", "1", "--model.n_embd", "16", "--model.block_size", "8"]
    assert main([*train, "--data.path", "low.txt", "--name", "low", "--data.tokenizer.kind", "chars"]) == 0
    assert main(["export", "low", "--to", "hf"]) == 0
    card = (place / "runs/low/export/hf/README.md").read_text()
    assert 'tokenizer(",", return_tensors="pt")' in card


def test_export_to_gguf(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    made(place / "small", (place / "text.txt").read_text(), GPT2)
    assert main(["export", "small", "--to", "gguf", "--out", "files/small.gguf", "--dtype", "q8_0"]) == 0
    assert "files/small.gguf: gpt2 for llama.cpp" in capsys.readouterr().out
    assert (place / "files" / "small.gguf").read_bytes()[:4] == b"GGUF"
    assert main(["export", "small", "--out", "no", "--dtype", "q8_0"]) == 2
    assert "--to gguf" in capsys.readouterr().err
    assert not (place / "no").exists()


def test_export_of_a_graph_with_its_factors(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        "--model.n_layer",
        "1",
        "--model.n_embd",
        "16",
        "--model.block_size",
        "60",
        "--data.tokenizer.kind",
        "chars",
    ]
    low_rank = ["--model.structure", '{"*.c_fc.weight": {"kind": "lowrank", "rank": 2}}']
    prompt = ["--train.sample_prompt", "the cat"]
    assert main([*TRAIN, *QUICK, *sizes, "--data.tokenizer.kind", "chars", *low_rank, *prompt, "--name", "thin"]) == 0
    assert main(["export", "thin", "--to", "torch", "--factored", "--out", "graph"]) == 0
    assert "graph: model.pt2 for torch.export.load" in capsys.readouterr().out
    code = (place / "graph" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=place / "graph", capture_output=True, text=True, check=True)
    greedy = ["--prompt", "the cat", "--tokens", "50", "--temperature", "0", "--device", "cpu"]
    assert main(["sample", "thin", *greedy]) == 0
    assert "the cat" + done.stdout.rstrip("\n") == capsys.readouterr().out.rstrip("\n")
    for wrong, told in (
        (["--to", "hf", "--factored"], "--to torch or --to onnx"),
        (["--to", "onnx", "--dtype", "bf16"], "--to hf or --to gguf"),
    ):
        assert main(["export", "thin", "--out", "no", *wrong]) == 2
        assert told in capsys.readouterr().err
    assert not (place / "no").exists()


def test_a_nanogpt_is_a_model_like_any_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (place / "text.txt").read_text()
    characters = sorted(set(text))
    (place / "out").mkdir()
    (place / "out" / "meta.pkl").write_bytes(pickle.dumps({"itos": dict(enumerate(characters))}))
    nanogpt(place / "out" / "ckpt.pt", args=ARGS | {"vocab_size": len(characters)})
    assert main(["eval", "out/ckpt.pt", "--text", "text.txt", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] > 0
    chars = ["--data.tokenizer.kind", "chars", "--model.block_size", "6"]
    assert main([*TRAIN, *QUICK, *chars, "--init", "out/ckpt.pt", "--name", "on"]) == 0
    begun = RunDirectory.open(place / "runs" / "on")
    assert np.array_equal(
        begun.load("1").model["transformer.h.1.mlp.c_fc.weight"],
        open_model("out/ckpt.pt").weights["transformer.h.1.mlp.c_fc.weight"],
    )
