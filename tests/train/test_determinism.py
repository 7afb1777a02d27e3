"""How often a run evaluates, logs, saves or samples changes nothing; how a batch is cut changes rounding alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.config import RunConfig, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.torch_engine.device import choose_placement
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build, weights
from bonsaigpt.torch_engine.step import train_step

ENGINES = {workers: TorchEngine(device="cpu", workers=workers) for workers in (1, 2, 3)}


@pytest.fixture
def train(tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch):
    """``train(name, *flags)``: the last checkpoint of a run of 40 steps with dropout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)

    def train(name: str, *more: str) -> Checkpoint:
        command = [
            *("train", "zero-one", "--name", name, "--data.kind", "files", "--data.path", str(tiny_text)),
            *tiny_flags,
            *("--model.dropout", "0.1", "--train.steps", "40"),
        ]
        assert main([*command, *more]) == 0
        return RunDirectory.open(Path("runs") / name).load("last")

    return train


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether all tensors are equal in every bit."""
    assert one.model.keys() == other.model.keys()
    assert one.optimizer.keys() == other.optimizer.keys()
    pairs = [(one.model[n], other.model[n]) for n in one.model]
    pairs += [(one.optimizer[n], other.optimizer[n]) for n in one.optimizer]
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_what_is_looked_at_does_not_change_what_is_learned(train) -> None:
    rarely = train("rarely", "--train.eval_interval", "1000", "--train.log_interval", "1000")
    often = train(
        *("often", "--train.eval_interval", "3", "--train.log_interval", "1", "--train.keep_every", "3"),
        *("--train.sample_tokens", "12", "--train.sample_prompt", "the ", "--train.tensorboard", "true"),
    )
    assert len(RunDirectory.open(Path("runs/often")).steps()) == 14
    assert len(list(Path("runs/often/samples").iterdir())) == 15
    assert equal(rarely, often)
    assert equal(rarely, train("again", "--train.eval_interval", "1000", "--train.eval_block_size", "3"))


@pytest.mark.parametrize("change", [("--seed", "1338"), ("--model.dropout", "0.11"), ("--data.order", "random")])
def test_what_should_change_the_weights_does(train, change: tuple[str, str]) -> None:
    assert not equal(train("one"), train("other", *change))


def test_a_replayed_configuration_gives_the_same_weights(train) -> None:
    first = train("first")
    assert main(["train", "runs/first/config.toml", "--name", "replayed"]) == 0
    assert equal(first, RunDirectory.open(Path("runs/replayed")).load("last"))


# ------------------------------------------------------------------------------------------------ micro-batches


class Recorder:
    """An optimizer that only writes down the gradients."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.gradients: dict[str, np.ndarray] = {}

    def step(self, share: float, keep: torch.Tensor) -> None:
        self.gradients = {
            n: p.grad.numpy().astype(np.float64) for n, p in self.model.named_parameters() if p.grad is not None
        }

    def zero_grad(self) -> None:
        self.model.zero_grad()


def configuration(parts: int) -> RunConfig:
    return validate(
        {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 19},
            "train": {"batch_size": 8, "micro_batch": 8 // parts},
            "optim": {"grad_clip": 0.0},
        },
        origin="the test",
    )


def batch() -> Batch:
    """Rows in which unequal numbers of targets count, so that a mean of means would be another number."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 19, (8, 17))
    targets = tokens[:, 1:].copy()
    for row in range(8):
        targets[row, : 2 * row] = -1
    return Batch(tokens_BT=tokens[:, :-1], targets_BT=targets, count=int((targets >= 0).sum()))


def gradients(parts: int, workers: int = 1) -> tuple[dict[str, np.ndarray], float]:
    """Gradients and loss of one step, as the trainer takes it."""
    config = configuration(parts)
    model = build(config.model, seed=0)
    recorder = Recorder(model)
    state = replace(ENGINES[workers].init(config, weights(model)), optimizer=recorder)  # type: ignore[arg-type]
    recorder.model = state.model
    metrics = train_step(state, batch(), config=config, placement=choose_placement("cpu", "fp32"), share=1.0, step=0)
    return recorder.gradients, metrics.host()["loss"]


def exact_gradients() -> dict[str, np.ndarray]:
    """The same in float64 from end to end, the whole batch at once."""
    model = build(configuration(1).model, seed=0).double()
    given = batch()
    logits_BTV = model(torch.from_numpy(given.tokens_BT))
    loss = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), torch.from_numpy(given.targets_BT).flatten(), ignore_index=-1, reduction="sum"
    )
    (loss / given.count).backward()
    return {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Norm of the difference over all parameters, relative to the norm of ``other``."""
    assert one.keys() == other.keys()
    gap = math.sqrt(sum(float(((one[n] - other[n]) ** 2).sum()) for n in one))
    return gap / math.sqrt(sum(float((g**2).sum()) for g in other.values()))


@pytest.mark.parametrize(("count", "workers"), [(2, 1), (4, 1), (8, 1), (1, 2), (4, 2), (1, 3), (8, 3)])
def test_micro_batches_and_workers_give_the_gradient_of_the_whole_batch(count: int, workers: int) -> None:
    """Both are float32 evaluations of one sum: neither may be farther from the float64 result than rounding takes it.

    The yardstick is the rounding of the whole batch. The parts add at most ``2 * count`` further roundings of
    relative size 2^-24 to each element: |error| <= error of the parts' own sums + 2 * count * 2^-24 * sum |part|.
    """
    exact = exact_gradients()
    whole, loss = gradients(1)
    parts, parts_loss = gradients(count, workers)
    rounding = distance(whole, exact)
    assert 0 < rounding < 1e-5
    assert distance(parts, exact) <= 2 * rounding + 2 * max(count, workers) * 2.0**-24
    assert parts_loss == pytest.approx(loss, rel=(8 * 16) * 2.0**-24)


def test_the_gradient_check_notices_a_mean_of_means() -> None:
    """The classic mistake: the mean of each part's mean, where parts have unequal numbers of targets."""
    exact = exact_gradients()
    given = batch()
    model = build(configuration(1).model, seed=0)
    for part in range(4):
        cut = slice(2 * part, 2 * part + 2)
        logits_BTV = model(torch.from_numpy(given.tokens_BT[cut]))
        targets = torch.from_numpy(given.targets_BT[cut]).flatten()
        (torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets, ignore_index=-1) / 4).backward()
    wrong = {n: p.grad.numpy().astype(np.float64) for n, p in model.named_parameters() if p.grad is not None}
    assert distance(wrong, exact) > 1e-2
