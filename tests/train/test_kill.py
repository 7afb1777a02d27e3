"""A run that is killed at any moment and resumed ends in the very weights of one that never was.

SIGKILL cannot be caught, so nothing can be tidied up. Kills come at random moments and, one after the other, right
before every rename on the way (a checkpoint, a pointer, the run itself), before files are written and while old ones
are deleted. "Equal" means the bytes of every tensor, the optimizer's included.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.train.callbacks.jsonl import read_metrics

if os.name != "posix":
    pytest.skip("processes are forked and killed as POSIX does", allow_module_level=True)

from launcher import KILLED, Call, run, start

ORDERS = ("random", "shuffled", "streams")
STEPS = 3


def flags(tiny_text: Path, tiny_flags: list[str], *more: str) -> list[str]:
    """`bonsai train` on the tiny text, with dropout, and a learning rate that does not depend on the steps to come."""
    return [
        *("train", "zero-one", "--data.kind", "files", "--data.path", str(tiny_text)),
        *tiny_flags,
        *("--model.dropout", "0.1", "--optim.schedule.kind", "constant", "--train.log_interval", "1"),
        *more,
    ]


def load(run_folder: Path) -> Checkpoint:
    return RunDirectory.open(run_folder).load("last")


def differences(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Names of the tensors that differ in a single bit, in name or in shape."""
    names: list[str] = []
    for left, right in ((one.model, other.model), (one.optimizer, other.optimizer)):
        for name in sorted(left.keys() | right.keys()):
            a, b = left.get(name), right.get(name)
            if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape) or a.tobytes() != b.tobytes():
                names.append(name)
    return names


def history(run_folder: Path) -> list[tuple[float, ...]]:
    """Every line of training and of evaluation, in order; times, speed and memory are left out."""
    names = ("step", "tokens", "loss", "grad_norm", "lr", "val_loss", "val_tokens")
    lines = read_metrics(run_folder / "metrics.jsonl")
    return [tuple(line[name] for name in names if name in line) for line in lines]


def training(run_folder: Path) -> list[tuple[float, ...]]:
    """The lines of training alone, for runs that are evaluated at other times."""
    return [line for line in history(run_folder) if len(line) == 5]


def finish(folder: Path, command: list[str], name: str = "killed") -> None:
    """Go on as a user would: resume, or start again if the kill came before there was a run."""
    target = folder / "runs" / name
    if target.exists():
        assert run(folder, ["train", f"runs/{name}", "--resume"]) == 0, (folder / "errors.txt").read_text()
    else:
        assert run(folder, [*command, "--name", name]) == 0, (folder / "errors.txt").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """A folder with one uninterrupted run for each order of the data."""
    folder = tmp_path_factory.mktemp("whole")
    for order in ORDERS:
        command = flags(tiny_text, tiny_flags, "--train.steps", str(STEPS), "--train.eval_interval", "1")
        assert run(folder, [*command, "--data.order", order, "--name", order]) == 0, (folder / "errors.txt").read_text()
    return folder


# 1 to 5 make the run; then each of three checkpoints is one folder and two pointers
RENAMES = [("os.replace", call) for call in range(1, 5 + 3 * STEPS + 1)]
WRITES = [("bonsaigpt.checkpoint.files._save", call) for call in range(1, 2 * STEPS + 1)]
DELETIONS = [("os.rmdir", call) for call in (1, 2)] + [("os.unlink", call) for call in (1, 2, 4)]


@pytest.mark.parametrize("kill", [*RENAMES, *WRITES, *DELETIONS], ids=lambda kill: f"{kill[0]}-{kill[1]}")
def test_a_kill_at_this_call_changes_nothing(
    kill: Call, whole: Path, tmp_path: Path, tiny_text: Path, tiny_flags: list[str]
) -> None:
    order = ORDERS[kill[1] % 3]
    shutil.copytree(whole / "corpora", tmp_path / "corpora")
    command = flags(
        tiny_text, tiny_flags, "--train.steps", str(STEPS), "--train.eval_interval", "1", "--data.order", order
    )
    assert run(tmp_path, [*command, "--name", "killed"], kill) == KILLED
    target = tmp_path / "runs/killed"
    finished = target.exists() and RunDirectory.open(target).steps()[-1:] == [STEPS]
    if finished:  # all that was left were pointers and deletions; the refusal to go on mends the pointers
        assert run(tmp_path, ["train", "runs/killed", "--resume"]) == 2
    else:
        finish(tmp_path, command)

    expected, found = load(whole / "runs" / order), load(target)
    assert differences(found, expected) == []
    assert {**found.state, "seconds": 0} == {**expected.state, "seconds": 0}
    lines, all_lines = history(target), history(whole / "runs" / order)
    # Killed after the very last checkpoint there is nothing to resume, so nobody writes its evaluation down any more.
    assert lines == all_lines or (finished and lines == all_lines[:-1])
    best = RunDirectory.open(target).find("best")
    assert best.name == f"step-{found.state['best_step']:06d}"
    names = {p.name for p in (target / "checkpoints").iterdir()}
    assert names >= {"best", "last", best.name, f"step-{STEPS:06d}"}
    assert len(names) <= (4 if not finished else 5)  # whoever kills the last deletion keeps a checkpoint too many
    assert [p for p in tmp_path.rglob(".*") if p.name != ".hashes.json"] == []


def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path, tiny_text: Path, tiny_flags: list[str]) -> None:
    """One run, killed twenty times, that writes a checkpoint at every step."""
    moments = random.Random(20)
    command = flags(tiny_text, tiny_flags, "--data.order", "streams", "--train.eval_interval", "1")
    forever = [*command, "--train.steps", "1000000", "--name", "killed"]
    target = tmp_path / "runs/killed"
    for attempt in range(20):
        argv = ["train", "runs/killed", "--resume"] if target.exists() else forever
        process, began = start(tmp_path, argv)
        if attempt % 5:
            before = time.monotonic()
            assert began.wait(60), (tmp_path / "errors.txt").read_text()
            time.sleep(
                moments.uniform(0.0, 0.2) * (time.monotonic() - before)
            )  # a busy machine starts and steps slowly
        else:  # at times before there is anything to lose
            time.sleep(moments.uniform(0.0, 0.4))
        if attempt == 19:  # on a machine that is slow today, all so far came before there was anything to lose
            until = time.monotonic() + 120
            while max(RunDirectory.open(target).steps(), default=0) <= 2:
                assert time.monotonic() < until, "no third step in two minutes"
                time.sleep(0.05)
        process.kill()
        process.join()
        assert process.exitcode == KILLED, (tmp_path / "errors.txt").read_text()
    reached = max(RunDirectory.open(target).steps())

    steps = ["--train.steps", str(reached + 3)]
    assert run(tmp_path, ["train", "runs/killed", "--resume", *steps]) == 0, (tmp_path / "errors.txt").read_text()
    assert run(tmp_path, [*command, *steps, "--train.eval_interval", "1000000", "--name", "whole"]) == 0
    found, expected = load(target), load(tmp_path / "runs/whole")
    assert found.state["step"] == expected.state["step"] == reached + 3
    assert differences(found, expected) == []
    assert training(target) == training(tmp_path / "runs/whole")


@pytest.mark.parametrize(
    "kill", [("bonsaigpt.train.loop.evaluate", 1), ("bonsaigpt.torch_engine.engine.train_step", 2)]
)
def test_a_kill_before_the_first_checkpoint_keeps_the_weights_that_init_gave(
    kill: Call, whole: Path, tmp_path: Path, tiny_text: Path, tiny_flags: list[str]
) -> None:
    """No seed can make them again, so they must be on the disk before training begins."""
    init = [
        *flags(tiny_text, tiny_flags, "--train.steps", "2", "--train.eval_interval", "100"),
        *("--init", str(whole / "runs/random"), "--runs", str(tmp_path / "runs"), "--corpora", str(whole / "corpora")),
    ]
    assert run(tmp_path, [*init, "--name", "whole"]) == 0, (tmp_path / "errors.txt").read_text()
    assert run(tmp_path, [*init, "--name", "killed"], kill) == KILLED
    assert run(tmp_path, ["train", "runs/killed", "--resume", "--corpora", str(whole / "corpora")]) == 0
    assert differences(load(tmp_path / "runs/killed"), load(tmp_path / "runs/whole")) == []


def test_another_seed_gives_other_weights(whole: Path, tmp_path: Path, tiny_text: Path, tiny_flags: list[str]) -> None:
    command = flags(tiny_text, tiny_flags, "--train.steps", str(STEPS), "--seed", "1", "--data.order", "random")
    assert run(tmp_path, [*command, "--name", "other"]) == 0
    other, expected = load(tmp_path / "runs/other"), load(whole / "runs/random")
    same = {"steps"}  # the optimizer's count of them
    assert set(differences(other, expected)) == (expected.model.keys() | expected.optimizer.keys()) - same
    orders = [load(whole / "runs" / order) for order in ORDERS]
    assert all(differences(a, b) for a, b in itertools.pairwise(orders))


def test_the_comparison_notices_one_bit(whole: Path) -> None:
    one, other = load(whole / "runs/random"), load(whole / "runs/random")
    assert differences(one, other) == []
    name = "exp_avg.transformer.h.0.mlp.c_fc.weight"
    bits = np.array(other.optimizer[name]).view(np.uint32)
    bits[3, 5] ^= 1
    other.optimizer[name] = bits.view(np.float32)
    assert differences(one, other) == [name]


def test_the_whole_runs_learned_something(whole: Path) -> None:
    for order in ORDERS:
        lines = (whole / "runs" / order / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["val_loss"] for line in lines if "val_loss" in line]
        assert len(losses) == STEPS + 1
        assert losses[-1] < losses[0]
