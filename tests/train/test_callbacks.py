"""Schedule and callbacks."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bonsaigpt.config import ConstantSchedule, CosineSchedule, RunConfig, derive
from bonsaigpt.errors import DeviceError
from bonsaigpt.measure import Evaluation
from bonsaigpt.train.callbacks.console import ConsoleProgress, score_line
from bonsaigpt.train.callbacks.jsonl import read_metrics
from bonsaigpt.train.callbacks.wandb import WandB
from bonsaigpt.train.events import Outcome
from bonsaigpt.train.schedule import learning_rate


def test_cosine_with_warmup() -> None:
    config = derive(
        RunConfig(),
        optim={"lr": 0.01, "schedule": CosineSchedule(warmup=10, final=0.1).model_dump()},
        train={"steps": 110},
    )
    rates = [learning_rate(config, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.01 / 11)
    assert rates[9] == pytest.approx(0.1 / 11)
    assert rates[10] == 0.01
    assert rates[60] == pytest.approx(0.01 * (0.1 + 0.9 * 0.5))
    assert rates[109] == pytest.approx(0.01 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.99))))
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(config, 500) == pytest.approx(0.001)  # past the end it stays


def test_constant() -> None:
    config = derive(RunConfig(), optim={"schedule": ConstantSchedule(warmup=3).model_dump()})
    assert [learning_rate(config, s) for s in (0, 3, 10**9)] == [pytest.approx(0.00025), 0.001, 0.001]


def test_nanogpts_schedule_is_the_same() -> None:
    """Its get_lr by formula, at its CPU recipe; step for step."""
    config = RunConfig()
    for step in (0, 50, 99, 100, 101, 1000, 1999):
        if step < 100:
            theirs = 1e-3 * (step + 1) / 101
        else:
            theirs = 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * (1e-3 - 1e-4)
        assert learning_rate(config, step) == pytest.approx(theirs, rel=1e-12)


def test_score_line_shows_what_applies() -> None:
    text = Evaluation(loss=1.5, perplexity=math.exp(1.5), bits_per_byte=2.164, exact=None, tokens=10)
    assert score_line(text) == "loss 1.5000  perplexity 4.48  2.164 bits/byte"
    toy = Evaluation(loss=0.0, perplexity=1.0, bits_per_byte=None, exact=0.9993, tokens=10)
    assert score_line(toy) == "loss 0.0000  perplexity 1.00  99.93% exact"


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_wandb_without_the_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(DeviceError, match=r"bonsaigpt\[wandb\]"):
        WandB("project")


@pytest.mark.parametrize(
    ("step", "words"), [(0, "SIGTERM: before the first step: nothing to save"), (7, "SIGTERM: saved at step 7")]
)
def test_a_stop_says_what_was_saved(step: int, words: str) -> None:
    told = StringIO()
    listener = ConsoleProgress(Console(file=told))
    listener.on_stop(Outcome(step=step, reason="SIGTERM", best_loss=2.9, best_step=0, remark=None))
    assert told.getvalue().splitlines() == [words, "best validation loss 2.9000 at step 0"]
