"""Runs as processes of their own, a few at once, until all have ended or somebody asks to stop.

A process for each run costs a few seconds of importing torch, and buys that no run can harm another: a crash, a
leak, or the kernel's out-of-memory killer takes one run, not the sweep, and the peak of its memory is its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bonsaigpt.files import writing
from bonsaigpt.train.interrupt import Interrupt

__all__ = ["STOPPED", "Executor", "ProcessPool", "Started", "Work", "failure", "run_all"]

STOPPED = (130, 143)
"""Exit codes of a run that a signal asked to stop: it has saved, and can go on."""


class Work(Protocol):
    """One run to be made, or to be gone on with."""

    @property
    def name(self) -> str:
        """Of the run."""
        ...

    @property
    def log(self) -> Path:
        """Where everything goes that it prints."""
        ...

    @property
    def command(self) -> Sequence[str]:
        """What to execute for it in a process of its own; the process is to stop when its standard input ends."""
        ...

    def __call__(self) -> int:
        """The same in this process: the exit code of `bonsai train`."""
        ...


class Started(Protocol):
    """A run that is under way, or waits in a queue."""

    def poll(self) -> int | None:
        """Its exit code; None as long as it has not ended."""
        ...

    def stop(self) -> None:
        """Ask it to save and leave."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Executor(Protocol):
    """Where runs are executed."""

    def start(self, work: Work) -> Started: ...


class ProcessPool:
    """Processes on this machine."""

    def start(self, work: Work) -> Started:
        """Start it in a session of its own: the terminal's Ctrl-C reaches us alone, and we pass it on once."""
        with writing(work.log), work.log.open("ab") as log:
            return _Process(
                subprocess.Popen(
                    work.command,
                    stdin=subprocess.PIPE,  # it ends when we do, however we end, and so tells the run to save and leave
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                    start_new_session=True,
                )
            )


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.poll()


def run_all(
    works: Sequence[Work],
    executor: Executor,
    *,
    at_once: int,
    on_end: Callable[[Work, int, bool], None],
    follow: Callable[[Sequence[Work]], None],
    interval: float = 0.2,
) -> str | None:
    """Execute everything, ``at_once`` at a time; the name of the signal that stopped it, None if it came to its end.

    The first Ctrl-C or SIGTERM lets all running ones save and leave, the second Ctrl-C kills them.

    Args:
        on_end: told a run, its exit code, and whether it had been asked to stop.
        follow: called every ``interval`` seconds with what is running.
    """
    waiting = deque(works)
    running: list[tuple[Work, Started]] = []
    asked = False
    with Interrupt() as interrupt:
        try:
            while running or (waiting and not asked):
                if interrupt.name is not None and not asked:
                    asked = True
                    for _, started in running:
                        started.stop()
                while waiting and not asked and len(running) < at_once:
                    work = waiting.popleft()
                    running.append((work, executor.start(work)))
                for work, started in list(running):
                    code = started.poll()
                    if code is not None:
                        running.remove((work, started))
                        on_end(work, code, asked)
                follow([work for work, _ in running])
                time.sleep(interval if running else 0.0)
        except BaseException:  # a second Ctrl-C, a full disk: nobody would look after those that run
            for _, started in running:
                started.kill()
            raise
    return interrupt.name if asked else None


def failure(code: int, log: Path) -> str:
    """Why a run failed, in one line: its own last words, or the signal that killed it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (": the machine may have run out of memory" if name == "SIGKILL" else "")
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    ours = [line.removeprefix("bonsai: ") for line in lines if line.startswith("bonsai: ")]
    return (ours or [line for line in lines if line] or [f"exit code {code}"])[-1]
