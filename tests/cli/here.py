"""Runs of a sweep in this process, without the seconds that a process of its own takes to import torch."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

import pytest

from bonsaigpt.cli.member import Member
from bonsaigpt.study.pool import Work

__all__ = ["Here", "pool_without_processes"]


@dataclass
class Here:
    """Executes each run in this process, and remembers which; the one at ``stop_at`` is sent a signal on its way."""

    names: list[str]
    stop_at: int = -1

    def start(self, work: Work) -> Ended:
        if isinstance(work, Member):  # and not the decision before them
            self.names.append(work.name)
        if len(self.names) - 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)  # to the pool's handler: the run itself goes on to its end
        with work.log.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            return Ended(work())


@dataclass
class Ended:
    code: int

    def poll(self) -> int:
        return self.code

    def stop(self) -> None: ...
    def kill(self) -> None: ...


def pool_without_processes(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Let sweeps use it."""
    executor = Here([])
    monkeypatch.setattr("bonsaigpt.cli.sweeping.ProcessPool", lambda: executor)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)  # slow, and tested elsewhere
    return executor
