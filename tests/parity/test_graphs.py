"""A graph writes the same 200 tokens as the model that it was traced from, by torch.export and by ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bonsaigpt.config import ModelConfig
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.errors import CheckpointError, DeviceError, OutputError
from bonsaigpt.interop.graph_files import GRAPH_FILES, GraphFormat, write_graph_folder
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build, weights
from tests.torch_engine.variants import VARIANTS, variant

ENGINE = TorchEngine(device="cpu", precision="fp32", workers=1)
VOCABULARY, BLOCK = ByteTokenizer().vocab_size, 208
Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

NAMES = [name for name in VARIANTS if not name.startswith(("linear", "experts"))]
WITHOUT_ONNX = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("onnxscript", "onnxruntime")),
    reason="pip install 'bonsaigpt[onnx]'",
)


def quick_for(one: str) -> list[Any]:
    """All variants, of which that one is not slow: tracing takes seconds."""
    return [name if name == one else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def lively(name: str) -> GPT:
    """Weights at which every part matters."""
    model = build(variant(name, vocab_size=VOCABULARY, block_size=BLOCK), seed=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def written(model: GPT, folder: Path, form: GraphFormat, *, factored: bool = False) -> Step:
    write_graph_folder(
        folder,
        ENGINE,
        model.config,
        weights(model),
        ByteTokenizer(),
        origin="this",
        card="# This\n",
        form=form,
        factored=factored,
    )
    if form == "torch":
        return torch.export.load(folder / GRAPH_FILES[form]).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / GRAPH_FILES[form])

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(("tokens", "keys", "values"), (g.numpy() for g in given), strict=True))
        return tuple(torch.from_numpy(each) for each in session.run(None, named))

    return step


def nothing(config: ModelConfig, rows: int) -> tuple[Tensor, Tensor]:
    """No keys and no values."""
    heads, key, value = config.kv_widths
    layers = len(config.kv_layers)
    return torch.zeros(layers, rows, heads, 0, key), torch.zeros(layers, rows, heads, 0, value)


def check(model: GPT, step: Step) -> None:
    """The same 200 tokens after a prompt, the likeliest that was not yet there: no loop, in which a wrong model would
    fall as well. And a batch in pieces as in one pass, to 1e-5 of the largest logit."""
    prompt, past = torch.tensor([[3, 1, 4]]), nothing(model.config, 1)
    cache, written_V = ENGINE.cache(model, batch=1), torch.zeros(VOCABULARY, dtype=torch.bool)
    theirs, ours = prompt, prompt
    with torch.inference_mode():
        for _ in range(200):
            logits, *past = step(theirs, *past)
            theirs, ours = (
                each[:, -1:].masked_fill(written_V, -torch.inf).argmax(dim=-1)
                for each in (logits, model(ours, cache=cache))
            )
            assert theirs == ours
            written_V[ours] = True
        text = torch.randint(0, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(3))
        expected, past = model(text), nothing(model.config, 3)
        bound = 1e-5 * expected.abs().max()
        begin = 0
        for end in (1, 9, 10, 11, 40):
            logits, *past = step(text[:, begin:end], *past)
            assert (logits - expected[:, begin:end]).abs().max() <= bound
            begin = end
        forgetful, *_ = step(text[:, 1:], *nothing(model.config, 3))
        assert (forgetful - expected[:, 1:]).abs().max() > 100 * bound


@pytest.mark.parametrize("name", quick_for("shared, in windows"))
def test_an_exported_program_writes_the_same_200_tokens(name: str, tmp_path: Path) -> None:
    model = lively(name)
    check(model, written(model, tmp_path / "out", "torch"))


@WITHOUT_ONNX
@pytest.mark.parametrize("name", quick_for("modern"))
def test_onnx_runtime_writes_the_same_200_tokens(name: str, tmp_path: Path) -> None:
    model = lively(name)
    check(model, written(model, tmp_path / "out", "onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=WITHOUT_ONNX)])
def test_factors_stay_factors_where_that_is_asked_for(form: GraphFormat, tmp_path: Path) -> None:
    model = lively("structured")
    check(model, written(model, tmp_path / "factored", form, factored=True))
    if form == "torch":
        program = torch.export.load(tmp_path / "factored" / "model.pt2")
        assert {tuple(p.shape) for p in program.parameters()} == {tuple(p.shape) for p in model.parameters()}


@pytest.mark.parametrize(
    ("name", "named"), [("linear", "model.attention.kind = 'linear'"), ("experts", "model.mlp.kind = 'moe'")]
)
def test_what_is_no_graph_of_keys_and_values_is_refused(name: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=named):
        written(lively(name), tmp_path / "out", "torch")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        written(lively("gpt2"), tmp_path / "there", "torch")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_without_the_packages_onnx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(DeviceError, match=r"pip install 'bonsaigpt\[onnx\]'"):
        written(lively("gpt2"), tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())
