"""How far the runs of a sweep are, from what they write: no run has to know that somebody watches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bonsaigpt.report.history import is_number
from bonsaigpt.study.sweep import Sweep
from bonsaigpt.train.callbacks.jsonl import Tail

__all__ = ["Follower", "Progress"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Of the whole sweep."""

    ended: int
    """Runs, failed ones included."""
    steps: int
    """Done, over all runs; a failed run has none left."""
    total: int
    best: tuple[float, str] | None
    """The lowest validation loss so far, and the run that has it."""


class Follower:
    """Reads on in the metrics of each run, only what is new since the last look."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._tails = {run.name: Tail(sweep.run(run) / "metrics.jsonl") for run in sweep.plan.runs}
        self._step: dict[str, int] = {}
        self._best: tuple[float, str] | None = None
        self._read([run.name for run in sweep.plan.runs])

    def look(self, running: Iterable[str]) -> Progress:
        """Where everything stands, with these runs under way."""
        self._read(running)
        runs = self._sweep.plan.runs
        ended = [run for run in runs if self._sweep.status_of(run).word != "planned"]
        under_way = [run for run in runs if self._sweep.status_of(run).word == "planned"]
        return Progress(
            ended=len(ended),
            steps=sum(r.config.train.steps for r in ended) + sum(self._step.get(r.name, 0) for r in under_way),
            total=sum(r.config.train.steps for r in runs),
            best=self._best,
        )

    def _read(self, names: Iterable[str]) -> None:
        for name in names:
            for line in self._tails[name].read()[0]:
                if is_number(step := line.get("step")):
                    self._step[name] = int(step)
                if is_number(loss := line.get("val_loss")) and (self._best is None or loss < self._best[0]):
                    self._best = float(loss), name
