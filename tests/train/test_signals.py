"""Ctrl-C and SIGTERM to a running `bonsai train`: it saves, says how to go on, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bonsaigpt.checkpoint import RunDirectory

if os.name != "posix":
    pytest.skip("signals are sent as POSIX does", allow_module_level=True)

from launcher import run, start


@pytest.fixture
def command(tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`bonsai train` for a million steps, with dropout and a rate that does not depend on the steps to come."""
    monkeypatch.chdir(tmp_path)
    return [
        *("train", "zero-one", "--name", "run", "--data.kind", "files", "--data.path", str(tiny_text)),
        *tiny_flags,
        *("--model.dropout", "0.1", "--optim.schedule.kind", "constant"),
        *("--train.steps", "1000000", "--train.eval_interval", "1000000"),
    ]


def assert_saved_and_goes_on(name: str, command: list[str], out: str) -> None:
    """The last words of a run that signal ``name`` stopped are true, and its steps were not in vain."""
    stopped_run = RunDirectory.open(Path("runs/run"))
    [stopped] = stopped_run.steps()
    assert stopped > 0
    assert f"{name}: saved at step {stopped:,}" in out
    assert "go on with: bonsai train runs/run --resume" in out

    steps = str(stopped + 5)
    assert run(Path(), ["train", "runs/run", "--resume", "--train.steps", steps]) == 0
    assert run(Path(), [*command, "--name", "whole", "--train.steps", steps]) == 0
    found, expected = stopped_run.load("last"), RunDirectory.open(Path("runs/whole")).load("last")
    assert found.state["step"] == expected.state["step"] == stopped + 5
    for left, right in ((found.model, expected.model), (found.optimizer, expected.optimizer)):
        assert left.keys() == right.keys()
        assert [tensor for tensor in left if left[tensor].tobytes() != right[tensor].tobytes()] == []


def test_ctrl_c_saves_and_the_run_goes_on_bit_equal(command: list[str]) -> None:
    """A process of its own, from the interpreter's start to its end."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "bonsaigpt", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):  # the first evaluation; training goes on from here
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, error
    assert "Traceback" not in out + error
    assert_saved_and_goes_on("SIGINT", command, out)


def test_sigterm_saves_and_the_run_goes_on_bit_equal(command: list[str]) -> None:
    process, _ = start(Path(), command)
    wait_for("runs/run/metrics.jsonl", '"tokens_per_second"')  # of a step; step 0 is evaluated and not saved
    process.terminate()
    process.join(60)
    assert process.exitcode == 143
    assert Path("errors.txt").read_text() == ""
    assert_saved_and_goes_on("SIGTERM", command, Path("output.txt").read_text())


def test_the_second_ctrl_c_aborts_at_once(command: list[str]) -> None:
    process, began = start(Path(), command, hang=("bonsaigpt.train.loop.evaluate", 1))
    assert began.wait(60)
    os.kill(process.pid, signal.SIGINT)
    process.join(0.5)
    assert process.is_alive()  # the first one waits for the evaluation, a minute long
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert Path("errors.txt").read_text() == "bonsai: stopped\n"
    assert RunDirectory.open(Path("runs/run")).steps() == []
    assert list(Path("runs").rglob(".*")) == []


def wait_for(file: str, words: str) -> None:
    """Until the file exists and holds these words."""
    limit = time.monotonic() + 60
    while not (Path(file).exists() and words in Path(file).read_text()):
        assert time.monotonic() < limit, Path("errors.txt").read_text()
        time.sleep(0.02)
