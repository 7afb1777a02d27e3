"""Planted accidents: the run skips, goes back, or gives up with a diagnosis and keeps its last good checkpoint."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import GuardConfig, PreferenceObjective
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.parallel import Replicated
from bonsaigpt.train.callbacks.jsonl import read_metrics
from bonsaigpt.train.watch import Watch, nothing_learned


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

    def step(self, state, batch, *, config, share, step, look):
        taken.append(step)
        if step in factors:
            pending.append(factors.pop(step))
        return original(self, state, batch, config=config, share=share, step=step, look=look)

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
    assert (note["step"], note["back_to"]) == (60, 40)  # the loop looks at every tenth step
    assert "5 steps in a row" in note["why"]
    assert taken == [*range(60), *range(40, 120)]
    assert run.load("last").state["rollbacks"] == 1
    steps = [line["step"] for line in read_metrics(run.path / "metrics.jsonl") if "lr" in line]
    assert steps == sorted(set(steps))  # the path that was kept, once


@pytest.mark.parametrize("log_interval", ["7", "1000"])
def test_how_often_a_line_is_logged_changes_nothing_that_a_run_does(
    log_interval: str, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad steps that are over before a line is logged are seen, and at the same step; so is a loss that ran away."""
    runs: list[RunDirectory] = []
    for name, interval in (("often", "1"), ("seldom", log_interval)):
        plant(monkeypatch, {step: float("nan") for step in range(21, 27)})
        flags = ("--train.log_interval", interval, "--train.eval_interval", "60")
        code, run = train(name, *flags)
        assert code == 0
        runs.append(run)
    [notes, same] = [(run.path / "rollbacks.jsonl").read_text() for run in runs]
    assert notes == same
    assert (json.loads(notes)["step"], json.loads(notes)["back_to"]) == (30, 0)
    one, other = map(weights, runs)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_loss_that_runs_away_is_noticed_at_the_same_step_however_often_a_line_is_logged(
    train, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--optim.lr", "30", "--optim.schedule.warmup", "60", "--optim.grad_clip", "0", "--train.guard.spike", "0")
    stops: set[str] = set()
    for interval in ("1", "1000"):
        more = ("--train.log_interval", interval, "--train.eval_interval", "60", "--train.guard.rollbacks", "0")
        code, _ = train(f"every-{interval}", *flags, *more)
        said = capsys.readouterr().err
        assert code == 2
        stops.add(said.partition(" before")[0])
    assert len(stops) == 1
    assert re.search(r"diverged at step \d+: the training loss ran away", stops.pop())


def test_no_checkpoint_is_kept_of_weights_in_trouble(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 27 is kept, but the guard has shut before; the run goes back, and keeps it the second time."""
    plant(monkeypatch, {step: float("nan") for step in range(21, 27)})
    saved: list[int] = []
    original = RunDirectory.save

    def save(self, checkpoint: Checkpoint) -> None:
        saved.append(checkpoint.state["step"])
        original(self, checkpoint)

    monkeypatch.setattr(RunDirectory, "save", save)
    code, _ = train("kept", "--train.keep_every", "27", "--train.eval_interval", "60", "--train.log_interval", "1")
    assert code == 0
    assert saved == [27, 54, 60, 81, 108, 120]
    taken = plant(monkeypatch, {step: float("nan") for step in range(21, 27)})
    train("kept-none", "--train.eval_interval", "60", "--train.steps", "60")
    assert taken == [*range(30), *range(60)]


def test_a_run_for_nothing_says_so(train, capsys: pytest.CaptureFixture[str]) -> None:
    # Its loss cannot run so far away that the run is stopped, nor its weights.
    bounded = ("--model.logit_softcap", "2", "--optim.weight_decay", "0", "--train.guard.spike", "0")
    for lr in ("50", "1e-12"):
        train(f"lr-{lr}", "--optim.lr", lr, *bounded)
        said = " ".join(capsys.readouterr().out.split())
        assert "nothing was learned: " in said, said
        assert f"bonsai study lr runs/lr-{lr}" in said
    train("control", "--optim.lr", "0.01", *bounded)
    assert "nothing was learned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("best_step", "training", "validation", "says"),
    [
        (60, 4.1744, 4.1744, "is no better than a guess (65 tokens: 4.17)"),
        (60, 7.5, 7.3, "a validation loss of 7.30"),
        (0, 3.0, 3.1, "no evaluation was better"),  # it began with the weights of another run
        (60, 2.0, 2.1, None),
        (60, 0.2, 5.5, None),  # it only overfits
        (60, 3.9, 4.0, None),
    ],
)
def test_when_a_run_was_for_nothing(best_step: int, training: float, validation: float, says: str | None) -> None:
    losses = {"training_loss": training, "validation_loss": validation}
    found = nothing_learned(best_step, vocabulary=65, run="runs/a", **losses)
    assert found is None if says is None else says in (found or "")


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


def test_a_loss_that_is_not_to_fall_runs_away_from_nothing() -> None:
    """Of preferences half the targets are to become unlikely; what is not finite is trouble all the same."""
    watch = Watch(GuardConfig(max_skips=3), descends=PreferenceObjective(reference="x").descends)
    for loss in (0.3, 2.5, 2.5, 2.5):
        assert watch.trouble(loss=loss, skipped_in_a_row=0) is None
    assert not watch.is_lost(7.0, training_loss=7.0)
    assert watch.is_lost(math.nan, training_loss=2.5)
    assert watch.trouble(loss=2.5, skipped_in_a_row=3) is not None


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
    assert watch.is_lost(7.0, training_loss=7.0)
    assert watch.is_lost(math.nan, training_loss=2.0)
    assert not watch.is_lost(7.0, training_loss=2.0)  # it overfits: the training loss is low
    noted = watch.as_dict()
    assert watch.may_save(loss=4.9, skipped_in_a_row=2)
    assert watch.may_save(loss=math.nan, skipped_in_a_row=1)
    assert not watch.may_save(loss=7.0, skipped_in_a_row=0)
    assert not watch.may_save(loss=2.0, skipped_in_a_row=3)
    assert watch.as_dict() == noted
    saved = Watch(GuardConfig())
    saved.load(json.loads(json.dumps(watch.as_dict())))
    assert (saved.lowest, saved.high) == (watch.lowest, watch.high)


def test_the_checkpoint_carries_the_watch(train) -> None:
    _, run = train("carry")
    state: Checkpoint = run.load("last")
    assert state.state["watch"]["lowest"] > 0
    assert state.optimizer["guard"].shape == (7,)
    assert torch.from_numpy(state.optimizer["guard"]).isfinite().all()
