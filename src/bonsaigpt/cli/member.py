"""One run of a sweep, started or gone on with: what every executor executes, by `bonsai train` itself.

As a process of its own it is ``python -m bonsaigpt.cli.member RUN CONFIG CORPORA THREADS``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bonsaigpt.cli import main
from bonsaigpt.files import lock
from bonsaigpt.study.sweep import is_finished

__all__ = ["Member"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where the run is, what it starts from, and what it may use. It can be pickled: submitit sends it to a cluster."""

    run: Path
    config: Path
    corpora: Path
    threads: int
    """CPU threads that it starts with; 0 leaves the choice to torch. One that goes on keeps its own."""
    log: Path

    @property
    def name(self) -> str:
        """Of the run."""
        return self.run.name

    @property
    def command(self) -> Sequence[str]:
        """The same in a process of its own."""
        words = (self.run, self.config, self.corpora, self.threads)
        return [sys.executable, "-m", "bonsaigpt.cli.member", *map(str, words)]

    def __call__(self) -> int:
        """Start the run, or go on with it; its exit code.

        A sweep that was killed may have left a run that is still saving: it is waited for, never joined.
        """
        with lock(self.config, wait=True):
            if is_finished(self.run):
                return 0
            if self.run.exists():
                return main(["train", str(self.run), "--resume", "--corpora", str(self.corpora)])
            threads = ["--train.threads", str(self.threads)] if self.threads else []
            place = ["--name", self.name, "--runs", str(self.run.parent), "--corpora", str(self.corpora)]
            return main(["train", str(self.config), *place, *threads])

    def checkpoint(self) -> Any:
        """What submitit is to queue anew when the cluster takes the machine away."""
        return import_module("submitit").helpers.DelayedSubmission(self)


def _leave_with_parent() -> None:
    """Stop as after SIGTERM when standard input ends, which it does when whoever started us is gone."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _leave_with_parent()
    run, config, corpora, threads = sys.argv[1:]
    member = Member(
        run=Path(run), config=Path(config), corpora=Path(corpora), threads=int(threads), log=Path(os.devnull)
    )
    sys.exit(member())
