"""`bonsai train --dry-run`: a table and nothing else; and whatever a run would be refused for is refused here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.trace import Room

FLAGS = ["--data.path", "text.txt", "--data.tokenizer.kind", "chars", "--train.steps", "6"]


@pytest.fixture
def workshop(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    return tmp_path


def bonsai(*words: object) -> int:
    return main([str(word) for word in words])


def test_a_recipe_gives_a_table_and_no_run(
    workshop: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bonsai("train", "my-text", *FLAGS, *tiny_flags, "--dry-run", "--train.batch_size", 6) == 0
    said = capsys.readouterr().out
    assert not Path("runs").exists()
    table = " ".join(said.split())
    for words in (
        "parameters 3.",
        "1 layer of width 16, block 8",
        "activations",
        "tokens 288 the training text 0.1",
        "a full step takes",
        "2 evaluations of",
        "MFU",
        "at most 3 checkpoints of",
        "final loss unknown the fit is of Tiny Shakespeare in characters",
        "to decide how to compute",
        "micro-batch 6 6 sequences in one pass",
        "precision fp32 as asked",
        "compile off off, as asked",
        "nothing was trained",
    ):
        assert words in table, (words, said)
    assert "warning" not in table


def test_a_runs_own_configuration_and_what_is_left_of_a_run(
    workshop: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bonsai("train", "my-text", "--name", "a", *FLAGS, *tiny_flags) == 0
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert bonsai("train", "runs/a", "--dry-run") == 0
    assert "tokens 192 " in " ".join(capsys.readouterr().out.split())  # 6 steps of 4 rows of 8
    assert bonsai("train", "runs/a/config.toml", "--dry-run", "--train.batch_size", 2, "--train.micro_batch", 0) == 0
    assert "tokens 96 " in " ".join(capsys.readouterr().out.split())
    assert bonsai("train", "runs/a", "--resume", "--dry-run", "--train.steps", 9) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tokens 96 the training text 0.16 times by the end" in said  # 9 steps of 32 of 1,764 tokens
    assert "compile off of the run" in said
    assert bonsai("train", "my-text", *FLAGS, *tiny_flags, "--name", "b", "--init", "runs/a", "--dry-run") == 0
    assert "final loss" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()} == before


def test_warnings_are_plain(
    workshop: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "my-text", *FLAGS, *tiny_flags, "--dry-run"]
    assert bonsai(*words, "--train.steps", 2000) == 0
    assert re.search(r"warning: the data would be seen 36\.\d times", capsys.readouterr().out)
    monkeypatch.setattr(TorchEngine, "room", lambda self: Room(free=1000, total=10**12))
    assert bonsai(*words) == 0
    said = capsys.readouterr().out
    assert "warning: memory will not do" in said
    assert "one sequence in a pass" in said
    assert "no step was timed" in said
    monkeypatch.setattr(TorchEngine, "room", lambda self: Room(free=1000, total=60_000))  # weights and moments alone
    assert bonsai(*words) == 2
    assert "try --train.recompute true" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("verb", [["train"], ["train", "--dry-run"], ["profile"]])
def test_a_model_that_cannot_fit_is_refused_before_anything_takes_its_time(
    workshop: Path,
    tiny_flags: list[str],
    verb: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TorchEngine, "room", lambda self: Room(free=1000, total=1000))
    monkeypatch.setattr("bonsaigpt.cli.experiment.open_source", lambda *_, **__: pytest.fail("data were prepared"))
    assert bonsai(verb[0], "my-text", *verb[1:], *FLAGS[:4], *tiny_flags) == 2
    error = capsys.readouterr().err
    assert "try a smaller model.n_embd, model.n_layer or model.block_size" in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_every_decision_is_told_with_its_reason(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    monkeypatch.setattr("bonsaigpt.torch_engine.compiling.what_is_missing", lambda device: None)
    model = ["--model.n_layer", 1, "--model.n_head", 2, "--model.n_embd", 16, "--model.block_size", 8]
    words = ["train", "my-text", *FLAGS, *model, "--train.device", "cpu", "--optim.matrices.kind", "muon"]
    assert bonsai(*words, "--dry-run") == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {" ".join(row[:2]) if row[0] == "Muon's" else row[0]: row for row in table if row}
    assert rows["precision"][2] == "fp32:"
    assert rows["Muon's precision"][2] in ("fp32", "bf16")
    assert len(rows["Muon's precision"]) > 4
    assert rows["compile"][2] == "off:"
    assert bonsai(*words, "--name", "told") == 0
    lines = capsys.readouterr().out.splitlines()
    begins = next(i for i, line in enumerate(lines) if line.startswith("runs/told"))
    for said in ("timing a few steps", "train.workers: ", "train.micro_batch: ", "train.compile: off: "):
        assert any(line.startswith(said) for line in lines[:begins]), said


def test_the_toy_has_no_epochs(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--train.steps", 3, "--data.val_examples", 8, "--train.compile", "off", "--train.batch_size", 2]
    assert bonsai("train", "sort", "--dry-run", *flags) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tokens 36 work" in said  # 3 steps of 2 answers of 6 digits


def test_the_tracks_recipe_is_predicted(
    workshop: Path, shared_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "time_steps", lambda *_: [0.1, 0.1])
    text = ["--data.path", shared_data / "tinyshakespeare.txt", "--train.compile", "off"]
    assert bonsai("train", "shakespeare-char-best", "--dry-run", *text) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = re.search(r"final loss about (1\.\d\d) nats ± (0\.\d+), from the fit", said)
    assert found is not None, said
    assert abs(float(found[1]) - 1.564) < 0.02  # the median of five seeds in the race of the track
    assert "extrapolated" not in said
    # The same tokens by another name; twice the size is beyond the runs; another block is not spoken of.
    files = ["--data.kind", "files", "--data.split", "tail", *text]
    assert bonsai("train", "shakespeare-char-best", "--dry-run", *files, "--train.steps", 50_000) == 0
    assert "extrapolated: 38.4 M tokens" in " ".join(capsys.readouterr().out.split())
    assert bonsai("train", "shakespeare-char", "--dry-run", *text) == 0
    assert "final loss unknown" in " ".join(capsys.readouterr().out.split())
