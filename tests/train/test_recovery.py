"""Planted accidents: the run skips, goes back, or gives up with a diagnosis and keeps its last good checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import GuardConfig
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.parallel import Replicated
from bonsaigpt.train.callbacks.jsonl import read_metrics
from bonsaigpt.train.watch import Watch


@pytest.fixture
def train(tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch):
    """``train(name, *flags)`` -> (exit code, run) of a run of 120 steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)

    def train(name: str, *more: str) -> tuple[int, RunDirectory]:
        command = [
            *("train", "zero-one", "--name", name, "--data.kind", "files", "--data.path", str(tiny_text)),
            *tiny_flags,
            *("--train.steps", "120", "--train.eval_interval", "20", "--train.log_interval", "1"),
        ]
        return main([*command, *more]), RunDirectory.open(Path("runs") / name)

    return train


def plant(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> list[int]:
    """Multiply the gradients of these steps; every key acts once. Gives the steps that were taken."""
    taken: list[int] = []
    original = TorchEngine.step
    gather = Replicated.gradients
    pending: list[float] = []

    def step(self, state, batch, *, config, share, step):
        taken.append(step)
        if step in factors:
            pending.append(factors.pop(step))
        return original(self, state, batch, config=config, share=share, step=step)

    def gathered(self):
        gradients = gather(self)
        if pending:
            factor = pending.pop()
            for gradient in gradients:
                gradient.mul_(factor)
        return gradients

    monkeypatch.setattr(TorchEngine, "step", step)
    monkeypatch.setattr(Replicated, "gradients", gathered)
    return taken


def weights(run: RunDirectory) -> dict[str, np.ndarray]:
    """Of the last checkpoint."""
    return run.load("last").model


def test_a_planted_nan_batch_and_a_planted_spike_are_survived(train, monkeypatch: pytest.MonkeyPatch) -> None:
    code, calm = train("calm")
    assert code == 0
    plant(monkeypatch, {70: float("nan"), 90: 100.0})
    code, struck = train("struck")
    assert code == 0
    lines = read_metrics(struck.path / "metrics.jsonl")
    skipped = {line["step"]: line["skipped"] for line in lines if "skipped" in line}
    assert (skipped[70], skipped[71], skipped[90], skipped[91], skipped[120]) == (0, 1, 1, 2, 2)
    assert not (struck.path / "rollbacks.jsonl").exists()
    losses = [run.load("last").state["evaluation"]["loss"] for run in (calm, struck)]
    assert abs(losses[0] - losses[1]) < 0.05
    # Negative control: without the guard's second criterion the spike goes in.
    plant(monkeypatch, {90: 100.0})
    _, open_run = train("open", "--train.guard.spike", "0")
    assert read_metrics(open_run.path / "metrics.jsonl")[-1].get("skipped", 0) == 0


def test_bad_steps_in_a_row_send_the_run_back_to_another_order(train, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = plant(monkeypatch, {step: float("nan") for step in range(50, 55)})
    code, run = train("back")
    assert code == 0
    [note] = [json.loads(line) for line in (run.path / "rollbacks.jsonl").read_text().splitlines()]
    assert (note["step"], note["back_to"]) == (55, 40)
    assert taken == [*range(55), *range(40, 55), *range(55, 120)][: len(taken)]
    assert run.load("last").state["rollbacks"] == 1
    steps = [line["step"] for line in read_metrics(run.path / "metrics.jsonl") if "lr" in line]
    assert steps == sorted(set(steps))  # the path that was kept, once


def test_a_run_that_went_back_resumes_to_the_same_bits(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going back is part of what is a function of configuration and step: a stop after it changes nothing."""
    bad = {step: float("nan") for step in range(50, 55)}
    plant(monkeypatch, dict(bad))
    straight = weights(train("straight")[1])
    plant(monkeypatch, dict(bad))
    train("halves", "--train.steps", "80", "--optim.schedule.kind", "constant")
    plant(monkeypatch, dict(bad))
    one = weights(train("whole", "--optim.schedule.kind", "constant")[1])
    assert main(["train", "runs/halves", "--resume", "--train.steps", "120"]) == 0
    other = weights(RunDirectory.open(Path("runs/halves")))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["transformer.wte.weight"], straight["transformer.wte.weight"])


def test_an_absurd_learning_rate_ends_in_a_diagnosis_that_keeps_the_good_checkpoint(
    train, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = train("good", "--optim.schedule.kind", "constant")
    good = run.load("last")
    capsys.readouterr()
    flags = ("--train.steps", "400", "--optim.lr", "1e6", "--optim.schedule.warmup", "0", "--optim.grad_clip", "0")
    assert main(["train", "runs/good", "--resume", *flags]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for part in ("diverged at step", "again after 2 returns", "runs/good@last, step 120", "--optim.lr"):
        assert part in said, said
    kept = run.load("last")
    assert kept.state["step"] == 120
    assert all(np.array_equal(kept.model[n], good.model[n]) for n in good.model)
    assert all(np.isfinite(value).all() for value in kept.model.values())


def test_a_run_that_diverges_at_once_says_that_nothing_was_saved(train, capsys: pytest.CaptureFixture[str]) -> None:
    code, run = train("bad", "--optim.lr", "1e8", "--optim.schedule.warmup", "0", "--optim.grad_clip", "0")
    assert code == 2
    assert "None was saved" in capsys.readouterr().err
    assert run.steps() == []


def test_patience_stops_a_run_that_no_longer_gets_better(train) -> None:
    code, run = train("early", "--train.patience", "2", "--optim.lr", "1e-12", "--train.steps", "400")
    assert code == 0
    assert run.load("last").state["step"] <= 80
    _, patient = train("patient", "--train.patience", "0", "--optim.lr", "1e-12")
    assert patient.load("last").state["step"] == 120


def test_the_watch_by_hand() -> None:
    watch = Watch(GuardConfig(max_skips=3))
    for loss in (4.0, 2.0, 3.0, 4.9):
        assert watch.trouble(loss=loss, skipped_in_a_row=0) is None
    assert watch.trouble(loss=5.1, skipped_in_a_row=0) is None  # one odd batch
    assert watch.trouble(loss=2.0, skipped_in_a_row=0) is None
    assert watch.trouble(loss=6.0, skipped_in_a_row=0) is None
    assert "ran away to 7, from 2" in (watch.trouble(loss=7.0, skipped_in_a_row=0) or "")
    assert "3 steps in a row" in (watch.trouble(loss=2.0, skipped_in_a_row=3) or "")
    assert watch.trouble(loss=math.nan, skipped_in_a_row=1) is None
    assert watch.is_lost(7.0)
    assert watch.is_lost(math.nan)
    watch.trouble(loss=2.0, skipped_in_a_row=0)
    assert not watch.is_lost(7.0)  # it overfits: the training loss is low
    assert watch.is_lost(math.nan)
    saved = Watch(GuardConfig())
    saved.load(json.loads(json.dumps(watch.as_dict())))
    assert (saved.lowest, saved.high) == (watch.lowest, watch.high)


def test_the_checkpoint_carries_the_watch(train) -> None:
    _, run = train("carry")
    state: Checkpoint = run.load("last")
    assert state.state["watch"]["lowest"] > 0
    assert state.optimizer["guard"].shape == (7,)
    assert torch.from_numpy(state.optimizer["guard"]).isfinite().all()
