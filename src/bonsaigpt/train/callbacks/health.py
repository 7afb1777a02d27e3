"""``health.jsonl``: a line for each look at a run's health; on the terminal a sentence when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bonsaigpt.config import ModelConfig
from bonsaigpt.measure.health import Health, Monitor
from bonsaigpt.train.callbacks.jsonl import LineFile, read_metrics
from bonsaigpt.train.events import Callback, HealthEvent, RollbackEvent, StartEvent

__all__ = ["HealthLines", "read_health"]


class HealthLines(Callback):
    """A finding is printed once, when it begins; a resumed run knows what was said before."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._file = LineFile()

    def on_start(self, event: StartEvent) -> None:
        self._model = event.config.model
        self._open(event.run.path / "health.jsonl", lambda line: line["step"] <= event.step)

    def _open(self, path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        self._monitor = Monitor(self._model)
        for health in _read(self._file.open(path, is_kept)):
            self._monitor.add(health)

    def on_health(self, event: HealthEvent) -> None:
        self._file.write(event.health.as_dict())
        for finding in self._monitor.add(event.health):
            self._console.print(
                f"[yellow]step {event.health.step:,}: {escape(finding.sentence)}[/]", highlight=False, soft_wrap=True
            )

    def on_rollback(self, event: RollbackEvent) -> None:
        self._open(self._file.path, lambda line: line["step"] <= event.back_to)

    def close(self) -> None:
        self._file.close()


def read_health(path: Path, model: ModelConfig) -> tuple[list[Health], Monitor]:
    """All whole lines of ``health.jsonl`` and what they say; none if there is no such file."""
    looks, monitor = _read(read_metrics(path)), Monitor(model)
    for health in looks:
        monitor.add(health)
    return looks, monitor


def _read(lines: list[dict[str, Any]]) -> list[Health]:
    looks: list[Health] = []
    for line in lines:
        with suppress(KeyError):  # somebody else's line
            looks.append(Health.from_dict(line))
    return looks
