"""The ten-second check: grow, stop, go on, score and sample a GPT, from the command line's entry point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bonsaigpt.cli import main


def bonsai(*words: object) -> None:
    """Run one command in this process; it must succeed."""
    assert main([str(w) for w in words]) == 0


def test_everything_once(
    tmp_path: Path,
    tiny_text: Path,
    tiny_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data.path", tiny_text, "--data.tokenizer.kind", "chars"]
    steps = [
        "--train.steps",
        40,
        "--train.eval_interval",
        20,
        "--train.log_interval",
        5,
        "--train.tensorboard",
        "false",
    ]
    learn = ["--optim.lr", 1e-2, "--optim.schedule.warmup", 5]
    bonsai("train", "my-text", "--name", "a", *data, *tiny_flags, *steps, *learn)
    assert "report: runs/a/report.html" in capsys.readouterr().out

    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    assert len(losses) == 3  # before the first step, and twice
    assert losses[-1] < losses[0] - 0.3  # it learned something

    bonsai("train", "runs/a", "--resume", "--train.steps", 50)
    assert "changed train.steps: 40 -> 50" in capsys.readouterr().out
    bonsai("eval", "runs/a@last", "--json")
    scores = json.loads(capsys.readouterr().out)
    last = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()][-1]
    assert scores["loss"] == pytest.approx(last["val_loss"], rel=1e-6)
    assert scores["model"] == "runs/a@50"

    bonsai("sample", "runs/a", "--prompt", "the ", "--tokens", 30, "--seed", 3)
    first = capsys.readouterr().out
    bonsai("sample", "runs/a", "--prompt", "the ", "--tokens", 30, "--seed", 3)
    assert capsys.readouterr().out == first
    assert first.startswith("the ")
    assert len(first) == 4 + 30 + 1
    bonsai("sample", "runs/a", "--prompt", "the ", "--tokens", 30, "--seed", 4)
    assert capsys.readouterr().out != first
