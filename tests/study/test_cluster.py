"""Jobs of a cluster: by a stand-in for submitit, and, where the real one is installed, by its local imitation."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bonsaigpt.cli import main
from bonsaigpt.errors import ConfigError, DeviceError
from bonsaigpt.study.cluster import SubmititExecutor
from bonsaigpt.study.pool import Work, failure


class UncompletedJobError(Exception):
    """By this name submitit calls a job that ended without a result."""


@dataclass
class StandIn:
    """The little of submitit's job that we use."""

    done_after: int
    result_: int = 0
    trouble: Exception | None = None
    cancelled: int = 0

    def done(self) -> bool:
        self.done_after -= 1
        return self.done_after < 0

    def exception(self) -> Exception | None:
        return self.trouble

    def result(self) -> int:
        return self.result_

    def stdout(self) -> str:
        return "submitit INFO\nbonsai: its last words\n"

    def stderr(self) -> None:
        return None

    def cancel(self, *, check: bool) -> None:
        self.cancelled += 1


@dataclass
class Oak:
    """A run."""

    log: Path
    name = "oak"
    command = ()

    def __call__(self) -> int:
        return 0


@dataclass
class Cluster:
    """Stands in for the module."""

    job: StandIn
    folders: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def AutoExecutor(self, *, folder: str, cluster: str) -> Cluster:
        if cluster == "slurm" and self.job.done_after == 99:
            raise RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?')
        self.folders.append(folder)
        return self

    def update_parameters(self, **options: Any) -> None:
        if "tiemout_min" in options:
            raise NameError("Unknown argument 'tiemout_min'. Valid arguments are:\n  - timeout_min")
        self.options = options

    def submit(self, work: Work) -> StandIn:
        assert callable(work)
        return self.job


def executor(job: StandIn, monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> SubmititExecutor:
    monkeypatch.setitem(sys.modules, "submitit", Cluster(job))
    return SubmititExecutor("slurm", folder, options)


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (StandIn(2, 0), 0),
        (StandIn(2, 2), 2),
        (StandIn(0, trouble=UncompletedJobError("cancelled")), 143),
        (StandIn(0, trouble=ValueError("a fault of ours")), 1),
    ],
)
def test_a_job_ends_as_a_process_would(
    job: StandIn, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Oak(tmp_path / "oak.log")
    started = executor(job, monkeypatch, tmp_path / "jobs", timeout_min=5).start(work)
    codes = []
    while not codes or codes[-1] is None:
        codes.append(started.poll())
    assert codes[-1] == code
    assert codes[:-1] == [None] * (2 if job.trouble is None else 0)
    if code == 2:
        assert failure(code, work.log) == "its last words"
    started.stop()
    assert job.cancelled == 1


def test_what_the_cluster_refuses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"refuses its options: Unknown argument 'tiemout_min'\. Valid"):
        executor(StandIn(0), monkeypatch, tmp_path / "jobs", tiemout_min=5)
    with pytest.raises(DeviceError, match="no SLURM on this machine"):
        executor(StandIn(99), monkeypatch, tmp_path / "jobs")
    assert not (tmp_path / "jobs").exists()


def test_a_missing_extra_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(DeviceError, match=r"--executor slurm needs .*pip install 'bonsaigpt\[submitit\]'"):
        SubmititExecutor("slurm", tmp_path / "jobs", {})


@pytest.mark.slow
def test_submitits_own_imitation_of_a_cluster(
    tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    words = ["zero-one", "--data.kind", "files", "--data.path", str(tiny_text), *tiny_flags, "--train.steps", "4"]
    words += ["--seeds", "2", "--jobs", "2", "--executor", "local-submitit", "--submitit", "timeout_min=5"]
    assert main(["sweep", *words, "--name", "s"]) == 0
    for seed in (1337, 1338):
        assert Path(f"runs/s/seed={seed}/checkpoints/step-000004").is_dir()
