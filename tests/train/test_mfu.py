"""The operations in a line of metrics are those of all positions that were computed, over the ceiling of the device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.config import load_toml, validate
from bonsaigpt.measure import flops_per_token
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.train.callbacks.jsonl import read_metrics


@pytest.fixture
def lines(tmp_path: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch):
    """Metrics of a short run of a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)

    def lines(recipe: str, *flags: str) -> list[dict[str, float]]:
        command = ["train", recipe, "--name", "a", *tiny_flags, "--train.steps", "4", "--train.log_interval", "2"]
        assert main([*command, *flags]) == 0
        return [line for line in read_metrics(Path("runs/a/metrics.jsonl")) if "mfu" in line]

    return lines


def test_positions_count_whether_or_not_they_are_asked(lines) -> None:
    """The toy `sort` asks for 6 digits of 11 positions; all 11 are computed."""
    found = lines("sort", "--model.block_size", "11", "--data.val_examples", "20")
    config = validate(load_toml(Path("runs/a/config.toml")), origin="t")
    per_token = flops_per_token(config.model, length=11)
    assert len(found) == 2
    for line in found:
        assert line["tflops"] * 1e12 / line["tokens_per_second"] == pytest.approx(per_token * 11 / 6, rel=1e-5)


def test_shorter_contexts_cost_less(lines, tiny_text: Path) -> None:
    data = ("--data.path", str(tiny_text), "--data.tokenizer.kind", "chars")
    ramp = ("--train.context_ramp.kind", "staged", "--train.context_ramp.sizes", "[4]", "--train.context_ramp.until")
    first, second = lines("my-text", *data, *ramp, "[2]")
    model = validate(load_toml(Path("runs/a/config.toml")), origin="t").model
    for line, length in ((first, 4), (second, 8)):
        per_token = flops_per_token(model, length=length)
        assert line["tflops"] * 1e12 / line["tokens_per_second"] == pytest.approx(per_token, rel=1e-5)


def test_mfu_is_against_the_ceiling_that_the_run_names(lines) -> None:
    found = lines("sort", "--model.block_size", "11", "--data.val_examples", "20")
    environment = json.loads(Path("runs/a/environment.json").read_text())
    engine = TorchEngine(device="cpu", threads=1)  # it measured once in this process
    assert environment["ceiling"] == engine.describe()["ceiling"]
    assert "measured here" in environment["ceiling"]
    for line in found:
        assert line["mfu"] == pytest.approx(line["tflops"] * 1e12 / engine.peak_flops(), rel=1e-5)
