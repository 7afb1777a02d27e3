"""What is foreseen is what happens: tokens, work, evaluations, disk; and time to the extent that time can be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import RunConfig, derive, validate
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.prepare import open_source
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.measure import flops_per_token
from bonsaigpt.measure.forecast import Forecast, forecast
from bonsaigpt.measure.scaling import Prediction, Scaling
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.trace import Room
from bonsaigpt.train import train
from bonsaigpt.train.callbacks.jsonl import JsonLines

ENGINE = TorchEngine(device="cpu", threads=1, workers=1)
STAGED = {
    "batch_ramp": {"kind": "linear", "start": 1, "steps": 6},
    "context_ramp": {"kind": "staged", "sizes": [4], "until": [3]},
}


def setting(tiny_text: Path, corpora: Path, **train: Any) -> tuple[RunConfig, BatchSource]:
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}
    loop = {"steps": 10, "batch_size": 4, "eval_interval": 4, "compile": "off", "micro_batch": 4, "workers": 1}
    optim = train.pop("optim", {})
    data = {"kind": "files", "path": str(tiny_text)}
    config = validate({"model": model, "train": loop | train, "optim": optim, "data": data}, origin="test")
    source = open_source(config, corpora)
    return derive(config, model={"vocab_size": source.tokenizer.vocab_size}), source


def foreseen(config: RunConfig, source: BatchSource, runs: Path, **state: Any) -> Forecast:
    return forecast(config, engine=ENGINE, source=source, runs=runs, **state)


def happened(config: RunConfig, source: BatchSource, folder: Path) -> tuple[RunDirectory, list[dict[str, Any]]]:
    run = RunDirectory.create(folder, config, source.tokenizer, {})
    train(config, engine=ENGINE, source=source, run=run, environment={}, listeners=[JsonLines()])
    return run, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        STAGED,
        {"steps": 8},
        {"keep_every": 3},
        {"optim": {"matrices": {"kind": "muon"}, "ema": 0.9}},
    ],
)
def test_a_run_is_as_foreseen(tiny_text: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config, source = setting(tiny_text, tmp_path / "corpora", **changes)
    found = foreseen(config, source, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    run, metrics = happened(config, source, tmp_path / "runs" / "a")
    assert found.tokens == metrics[-1]["tokens"]
    assert found.times is not None
    assert found.times.evaluations == sum("val_loss" in line for line in metrics)
    sizes = [sum(f.stat().st_size for f in run.folder(step).iterdir()) for step in run.steps()]
    # Names and shapes in the headers of two files, state and manifest, are no tensors.
    assert all(found.checkpoint <= size <= found.checkpoint + 6000 for size in sizes)
    assert len(sizes) < found.checkpoints <= len(sizes) + 2  # one is written aside; the best may be the last
    by_step = [source.batch_at(step).tokens_BT for step in range(config.train.steps)]
    assert found.flops == sum(b.size * flops_per_token(config.model, length=b.shape[1]) for b in by_step)
    assert isinstance(source, TokenBatches)
    assert found.epochs == sum(b.size for b in by_step) / len(source.train)


def test_the_rest_of_a_run_is_foreseen_from_where_it_stands(tiny_text: Path, tmp_path: Path) -> None:
    config, source = setting(tiny_text, tmp_path, **STAGED)
    whole, rest = (foreseen(config, source, tmp_path, begin=begin) for begin in (0, 5))
    assert whole.times is not None
    assert rest.times is not None
    begun = sum(source.batch_at(step).count for step in range(5))
    assert whole.tokens - rest.tokens == begun
    assert whole.epochs == rest.epochs  # of the run, not of its rest: what was seen before is seen again
    assert (whole.times.evaluations, rest.times.evaluations) == (4, 2)


def test_ramps_shorten_the_time(tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take a second, and one for each row: 1 + 1 to 1 + 4 of them on the way up."""
    timed: list[int] = []

    def seconds(self: TorchEngine, config: RunConfig, batch: Any, count: int) -> list[float]:
        timed.append(len(batch.tokens_BT))
        return [20.0] + [1.0 + len(batch.tokens_BT)] * count

    monkeypatch.setattr(TorchEngine, "time_steps", seconds)
    ramp = {"batch_ramp": {"kind": "linear", "start": 1, "steps": 6}}
    config, source = setting(tiny_text, tmp_path, **ramp)
    found = foreseen(config, source, tmp_path)
    assert found.times is not None
    assert sorted(timed) == [1, 4]
    warming_up = (20 - 2) + (20 - 5)
    rows = [len(source.batch_at(step).tokens_BT) for step in range(10)]
    assert found.times.training == pytest.approx(warming_up + sum(1 + r for r in rows))
    assert found.times.step == 5
    flat, source = setting(tiny_text, tmp_path)
    level = foreseen(flat, source, tmp_path)
    assert level.times is not None
    assert level.times.training == 15 + 10 * 5
    decided = foreseen(flat, source, tmp_path, deciding=7.0)
    assert decided.times is not None
    assert decided.times.total - level.times.total == pytest.approx(7.0, abs=0.5)  # evaluations are timed


def test_the_time_is_that_of_the_run(tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step takes as long as its tokens, and a target of an evaluation 10 ms."""
    ENGINE.peak_flops()  # measured once, by the true clock
    now = [0.0]

    def taking(seconds: Callable[..., float], method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            now[0] += seconds(*arguments, **more)
            return method(*arguments, **more)

        return timed

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(TorchEngine, "step", taking(lambda _, state, batch, **more: batch.count, TorchEngine.step))
    monkeypatch.setattr(
        TorchEngine, "evaluate", taking(lambda _, model, batch, **more: 0.01 * batch.count, TorchEngine.evaluate)
    )
    config, source = setting(tiny_text, tmp_path / "corpora", **STAGED)
    found = foreseen(config, source, tmp_path)
    assert found.times is not None
    assert found.times.step == 4 * 8
    now[0] = 0.0
    _, metrics = happened(config, source, tmp_path / "a")
    assert found.times.training == pytest.approx(metrics[-1]["seconds"])
    assert found.times.total == pytest.approx(now[0])


def test_warnings_come_where_they_are_due(tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, source = setting(tiny_text, tmp_path)
    assert isinstance(source, TokenBatches)
    found = foreseen(config, source, tmp_path)
    assert found.warnings == []
    epoch = len(source.train) // (4 * 8)
    [warning] = foreseen(derive(config, train={"steps": 5 * epoch}), source, tmp_path).warnings
    assert "5.0 times" in warning
    assert foreseen(derive(config, train={"steps": 3 * epoch}), source, tmp_path).warnings == []
    [warning] = replace(found, disk_free=found.disk - 1).warnings
    assert "disk" in warning
    monkeypatch.setattr(TorchEngine, "room", lambda self: Room(free=1000, total=10**12))
    monkeypatch.setattr(TorchEngine, "time_steps", lambda *_: pytest.fail("a step was taken"))
    tight = foreseen(config, source, tmp_path)
    assert tight.times is None
    [warning] = tight.warnings
    assert "memory will not do" in warning
    assert "--train.recompute true" in warning
    monkeypatch.setattr(TorchEngine, "room", lambda self: None)
    monkeypatch.undo()
    assert foreseen(config, source, tmp_path).fits


def test_a_loss_is_foreseen_only_for_a_run_that_starts_afresh(
    tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source = setting(tiny_text, tmp_path)
    assert "other data" in str(foreseen(config, source, tmp_path).loss)
    monkeypatch.setattr(Scaling, "why_not", lambda *_: None)  # as if it had been fitted
    assert isinstance(foreseen(config, source, tmp_path).loss, Prediction)
    for state in ({"begin": 5}, {"fresh": False}):
        assert "trained weights" in str(foreseen(config, source, tmp_path, **state).loss)
