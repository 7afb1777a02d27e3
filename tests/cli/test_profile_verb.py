"""`bonsai profile`: a recipe and a run, what is written, and what is refused."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.cli import profile as verb
from bonsaigpt.measure import profile as module


@pytest.fixture
def workshop(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a text, and a machine that is measured in no time."""
    monkeypatch.setattr(module, "_MACHINE_SECONDS", 0.002)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    return tmp_path


FLAGS = ["--data.path", "text.txt", "--data.tokenizer.kind", "chars"]
QUICK = ["--steps", "1", "--warmup", "1"]


def bonsai(*words: object) -> int:
    return main([str(word) for word in words])


def test_a_recipe_is_profiled_and_nothing_is_trained(
    workshop: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bonsai("profile", "my-text", *FLAGS, *tiny_flags, *QUICK, "--top", 3, "--train.batch_size", 6) == 0
    said = capsys.readouterr().out
    assert re.search(r"ms a step of 6 x 8 tokens", said)
    assert re.search(r"MFU [\d.]+%.*measured here", said)
    assert re.search(r"[\d.]+% accounted for", said)
    table = said[said.index("\noperator") :]
    assert len(table.splitlines()) == 1 + 1 + 3 + 1
    folder = Path("runs/my-text-profile/profile")
    assert f"page: {folder}/profile.html" in said
    assert sorted(p.name for p in folder.iterdir()) == ["figures.json", "profile.html", "trace.json"]
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["shape"] == [6, 8]
    assert figures["config"]["train"]["batch_size"] == 6
    assert figures["command"][:3] == ["bonsai", "profile", "my-text"]
    assert 0 < figures["accounted"] <= 1.01
    assert figures["mfu"] == pytest.approx(sum(figures["flops"].values()) / figures["seconds"] / figures["peak_flops"])
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert not list(Path().rglob("checkpoints"))
    assert not Path("runs/my-text").exists()


def test_a_run_keeps_its_profile_and_its_weights(
    workshop: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_LARGE", 1)
    assert bonsai("train", "my-text", "--name", "a", *FLAGS, *tiny_flags, "--train.steps", 4) == 0
    weights = Path("runs/a/checkpoints/step-000004/model.safetensors").read_bytes()
    for _ in range(2):  # the second one takes the place of the first
        assert bonsai("profile", "runs/a", *QUICK) == 0
    assert Path("runs/a/checkpoints/step-000004/model.safetensors").read_bytes() == weights
    assert sorted(p.name for p in Path("runs/a/profile").iterdir()) == ["figures.json", "profile.html", "trace.json.gz"]
    assert json.loads(gzip.decompress(Path("runs/a/profile/trace.json.gz").read_bytes()))["traceEvents"]
    assert bonsai("profile", "a", *QUICK, "--name", "b", "--train.batch_size", 2) == 0
    assert json.loads(Path("runs/b-profile/profile/figures.json").read_text())["shape"][0] == 2


def test_the_last_steps_are_taken_or_those_that_are_asked_for(workshop: Path, tiny_flags: list[str]) -> None:
    """A ramp of the batch is over at the end; a profile at its beginning sees the small batches."""
    ramp = ["--train.batch_ramp.kind", "linear", "--train.batch_ramp.start", 1, "--train.batch_ramp.steps", 40]
    words = ["profile", "my-text", *FLAGS, *tiny_flags, *QUICK, *ramp, "--train.steps", 60]
    assert bonsai(*words) == 0
    figures = json.loads(Path("runs/my-text-profile/profile/figures.json").read_text())
    assert (figures["at"], figures["shape"][0]) == (60 - 1 - 5, 4)
    assert bonsai(*words, "--at", 0) == 0
    figures = json.loads(Path("runs/my-text-profile/profile/figures.json").read_text())
    assert (figures["at"], figures["shape"][0]) == (0, 1)


def test_weights_that_do_not_fit_are_refused(
    workshop: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bonsai("train", "my-text", "--name", "a", *FLAGS, *tiny_flags, "--train.steps", 2) == 0
    assert bonsai("profile", "runs/a", "--model.n_embd", 32, *QUICK) == 2
    assert "has shape" in capsys.readouterr().err
    assert not Path("runs/a/profile").exists()
