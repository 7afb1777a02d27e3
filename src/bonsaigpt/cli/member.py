"""What executors execute for a sweep: a run, by `bonsai train` itself, and before the first run what all of them share.

Processes of their own are ``python -m bonsaigpt.cli.member run RUN CONFIG CORPORA FLAGS...`` and
``python -m bonsaigpt.cli.member decide FILE CONFIG CORPORA THREADS``.
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

from rich.console import Console

from bonsaigpt import recipes
from bonsaigpt.cli import exit_code, main
from bonsaigpt.cli.common import whisper
from bonsaigpt.cli.experiment import make_engine, open_data, with_vocabulary
from bonsaigpt.files import lock
from bonsaigpt.study.decided import write_decided
from bonsaigpt.study.sweep import is_finished

__all__ = ["Decision", "Member"]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """It can be pickled: submitit sends it to a cluster."""

    config: Path
    """The configuration that it starts from."""
    corpora: Path
    log: Path

    def checkpoint(self) -> Any:
        """What submitit is to queue anew when the cluster takes the machine away."""
        return import_module("submitit").helpers.DelayedSubmission(self)


@dataclass(frozen=True, kw_only=True)
class Member(_Work):
    """One run, to be started or to be gone on with."""

    run: Path
    flags: Sequence[str]
    """Settings on top of its configuration that it starts with. One that goes on keeps its own."""

    @property
    def name(self) -> str:
        """Of the run."""
        return self.run.name

    @property
    def command(self) -> Sequence[str]:
        """The same in a process of its own."""
        return _process("run", self.run, self.config, self.corpora, *self.flags)

    def __call__(self) -> int:
        """Start the run, or go on with it; its exit code.

        A sweep that was killed may have left a run that is still saving: it is waited for, never joined.
        """
        with lock(self.config, wait=True):
            if is_finished(self.run):
                return 0
            if self.run.exists():
                return main(["train", str(self.run), "--resume", "--corpora", str(self.corpora)])
            place = ["--name", self.name, "--runs", str(self.run.parent), "--corpora", str(self.corpora)]
            return main(["train", str(self.config), *place, *self.flags])


@dataclass(frozen=True, kw_only=True)
class Decision(_Work):
    """How all runs compute, decided by one of them: where they will run, and in a process that no run's memory is
    measured in."""

    file: Path
    """For what was decided."""
    threads: int
    """CPU threads; 0 leaves the choice to the configuration."""
    name = "decision"

    @property
    def command(self) -> Sequence[str]:
        """The same in a process of its own."""
        return _process("decide", self.file, self.config, self.corpora, self.threads)

    def __call__(self) -> int:
        """Decide, and write it down; an exit code."""
        return exit_code(self._decide)

    def _decide(self) -> int:
        console = Console()
        asked = recipes.load(str(self.config), {"train": {"threads": self.threads}} if self.threads else {})
        engine = make_engine(asked)
        source = open_data(asked, self.corpora, console)
        batch = source.batch_at(asked.train.steps - 1)
        resolved, why = engine.resolve(with_vocabulary(asked, source), batch, say=whisper(console))
        write_decided(self.file, asked, resolved, why)
        return 0


def _process(*words: object) -> list[str]:
    return [sys.executable, "-m", "bonsaigpt.cli.member", *map(str, words)]


def _leave_with_parent() -> None:
    """Stop as after SIGTERM when standard input ends, which it does when whoever started us is gone."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _leave_with_parent()
    what, target, config, corpora, *rest = sys.argv[1:]
    paths: dict[str, Path] = {"config": Path(config), "corpora": Path(corpora), "log": Path(os.devnull)}
    if what == "run":
        sys.exit(Member(run=Path(target), flags=rest, **paths)())
    sys.exit(Decision(file=Path(target), threads=int(rest[0]), **paths)())
