"""torchrun itself: workers are started again after a kill, and fewer machines go on alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.train.callbacks.jsonl import read_metrics

if os.name != "posix":
    pytest.skip("processes are forked and killed as POSIX does", allow_module_level=True)

from crowd import BAR, DDP, FSDP, LOOPBACK, errors, gap
from launcher import run


@pytest.fixture
def torchrun(tmp_path: Path):
    """``torchrun(log, launch, argv)``: `torchrun LAUNCH -m bonsaigpt ARGV` on 127.0.0.1, in the background."""
    agents: list[subprocess.Popen[str]] = []

    def torchrun(log: str, launch: list[str], argv: list[str]) -> subprocess.Popen[str]:
        with (tmp_path / log).open("w") as file:
            agent = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "bonsaigpt", *argv],
                cwd=tmp_path,
                env=os.environ | LOOPBACK | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        agents.append(agent)
        return agent

    yield torchrun
    for agent in agents:
        if agent.poll() is None:  # the test has failed; the agent ends its workers
            agent.terminate()
            agent.wait()


def workers(agent: subprocess.Popen[str]) -> list[int]:
    """Process numbers of the workers, in the order of their ranks."""
    return [int(n) for n in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]


def wait_for_step(run_folder: Path, step: int) -> None:
    until = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(run_folder / "metrics.jsonl")):
        assert time.monotonic() < until, f"{run_folder} does not reach step {step}"
        time.sleep(0.05)


@pytest.mark.parametrize("parallel", [pytest.param(DDP, marks=pytest.mark.slow), FSDP], ids=["ddp", "fsdp"])
@pytest.mark.skipif(sys.platform != "linux", reason="workers are found in /proc")
def test_torchrun_finishes_by_itself_after_kill_9(
    parallel: tuple[str, ...], tmp_path: Path, command: list[str], torchrun
) -> None:
    steps = ["--train.steps", "300", "--train.eval_interval", "50"]
    assert run(tmp_path, [*command, *steps, "--name", "one", "--train.workers", "1"]) == 0, errors(tmp_path)
    launch = ["--nproc-per-node", "2", "--max-restarts", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    agent = torchrun("torchrun.txt", launch, [*command, *steps, "--name", "crowd", *parallel])
    wait_for_step(tmp_path / "runs/crowd", 120)
    os.kill(workers(agent)[1], signal.SIGKILL)
    assert agent.wait(timeout=180) == 0, (tmp_path / "torchrun.txt").read_text()
    assert len(RunDirectory.open(tmp_path / "runs/crowd").environment["resumed"]) == 1
    assert gap(tmp_path / "runs/crowd", tmp_path / "runs/one") <= BAR


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are found in /proc")
def test_torchrun_goes_on_with_fewer_machines(tmp_path: Path, command: list[str], torchrun) -> None:
    """Two agents stand for two machines; one is lost with its worker, and the other goes on alone."""
    steps = ["--train.steps", "400", "--train.eval_interval", "50"]
    assert run(tmp_path, [*command, *steps, "--name", "one", "--train.workers", "1"]) == 0, errors(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    launch = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-id", "job", "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"]
    launch += ["--rdzv-conf", "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=2"]
    argv = [*command, *steps, "--name", "crowd", *FSDP, "--auto-resume"]
    first = torchrun("first.txt", launch, argv)
    time.sleep(3)  # whoever is first hosts the meeting
    second = torchrun("second.txt", launch, argv)
    wait_for_step(tmp_path / "runs/crowd", 120)
    assert len(list((tmp_path / "runs/crowd/checkpoints").glob("step-*/model-2.safetensors"))) > 0
    [worker] = workers(second)
    os.kill(second.pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    second.wait()
    assert first.wait(timeout=240) == 0, (tmp_path / "first.txt").read_text()
    assert gap(tmp_path / "runs/crowd", tmp_path / "runs/one") <= BAR
    assert (RunDirectory.open(tmp_path / "runs/crowd").find("last") / "model.safetensors").exists()  # of one process
