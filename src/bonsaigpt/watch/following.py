"""What happens in a folder of runs, as messages for the page. Nothing is asked of the runs: their files are read.

Messages are dictionaries with a ``kind``:

- ``run``: a run was found, or its configuration changed: ``name``, ``about``, ``steps``, ``parameters``, ``command``;
- ``lines``: new lines of its metrics, without what the page does not draw, and when they were ``written``; ``anew``:
  those before are void;
- ``state``: ``waiting`` (nothing was written yet), ``training``, ``silent`` (for long), ``done``;
- ``changed``: its ``samples`` or its ``health`` are others now;
- ``gone``: the folder is not there any more;
- ``studies``: all studies that there are, when one of them changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import RunConfig
from bonsaigpt.errors import ConfigError
from bonsaigpt.report.history import is_number
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.callbacks.jsonl import Tail
from bonsaigpt.watch.studies import studies_of

__all__ = ["Follower", "find_runs"]

Message = dict[str, Any]

_DRAWN = (
    *("step", "tokens", "seconds", "loss", "val_loss", "val_bits_per_byte", "val_exact"),
    *("lr", "grad_norm", "tokens_per_second", "mfu", "memory_mb"),
)
_MOST_LINES = 800
"""Of training, of one run at once: of more, evenly many are left out."""
_DEPTH = 3
"""Folders from the given one down to a run: a sweep's runs lie one deeper than others."""
_PATIENCE = 30.0
"""Seconds without a new line before a run counts as silent; or five times its usual gap, if that is longer."""


def find_runs(root: Path) -> dict[str, Path]:
    """The runs below a folder, or the folder itself if it is one, by their paths from there, in the order of names."""
    if os.path.isfile(root / "config.toml"):  # Path.is_file raises where a folder may not be entered
        return {root.resolve().name: root}
    return {path.relative_to(root).as_posix(): path for path in _below(root, _DEPTH)}


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or not os.path.isdir(path):
            continue
        if os.path.isfile(path / "config.toml"):
            yield path
        elif depth > 1:
            yield from _below(path, depth - 1)


@dataclass
class _Watched:
    """One run, and what was told of it."""

    path: Path
    tail: Tail
    config: RunConfig | None = None
    stamps: dict[str, object] = field(default_factory=dict)
    """Of the files that are read when they change."""
    step: int = 0
    seconds: float = 0.0
    lines: int = 0
    state: str = ""

    def written(self) -> float:
        """When its metrics were written last, seconds since the epoch; 0 if never."""
        try:
            return (self.path / "metrics.jsonl").stat().st_mtime
        except OSError:
            return 0.0

    def changed(self, name: str) -> bool:
        """Whether a file or folder of the run is another than the last time, or there at last."""
        try:
            status = (self.path / name).stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            stamp = None
        was, self.stamps[name] = self.stamps.get(name), stamp
        return stamp is not None and stamp != was


class Follower:
    """Looks into a folder again and again; what a page was told is remembered, so each page has its own.

    Args:
        clock: seconds since the epoch, as files are stamped with.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root, self._clock = root, clock
        self._runs: dict[str, _Watched] = {}
        self._studies: list[dict[str, Any]] | None = None

    def look(self) -> list[Message]:
        """What is new since the last look; everything at the first one."""
        found = find_runs(self._root)
        messages: list[Message] = [{"kind": "gone", "name": name} for name in self._runs if name not in found]
        self._runs = {name: run for name, run in self._runs.items() if name in found}
        for name, path in found.items():
            run = self._runs.setdefault(name, _Watched(path, Tail(path / "metrics.jsonl")))
            messages += ({**message, "name": name} for message in self._news(run))
        studies = [{"name": name, **study} for name, path in found.items() for study in studies_of(path)]
        if studies != self._studies:
            self._studies = studies
            messages.append({"kind": "studies", "studies": studies})
        return messages

    def _news(self, run: _Watched) -> Iterator[Message]:
        if run.changed("config.toml"):
            yield self._told(run)
        lines, anew = run.tail.read()
        if anew:
            run.step, run.seconds, run.lines = 0, 0.0, 0
        if lines or anew:
            steps = [int(line["step"]) for line in lines if is_number(line["step"])]
            run.step = max([run.step, *steps])
            run.seconds = max([run.seconds, *(line["seconds"] for line in lines if is_number(line.get("seconds")))])
            run.lines += len(lines)
            yield {"kind": "lines", "anew": anew, "written": run.written(), "lines": _thinned(lines)}
        for name, what in (("samples", "samples"), ("health.jsonl", "health")):
            if run.changed(name):
                yield {"kind": "changed", "what": what}
        if (state := self._state(run)) != run.state:
            run.state = state
            yield {"kind": "state", "state": state}

    def _told(self, run: _Watched) -> Message:
        directory = RunDirectory(run.path)
        try:
            run.config = directory.config
            parameters = parameter_count(run.config.model)
        except ConfigError as error:
            return {"kind": "run", "about": str(error), "steps": 0, "parameters": None, "command": ""}
        return {
            "kind": "run",
            "about": run.config.about,
            "steps": run.config.train.steps,
            "parameters": parameters,
            "command": str(directory.environment.get("command", "")),
        }

    def _state(self, run: _Watched) -> str:
        if run.config is not None and run.step >= run.config.train.steps:
            return "done"
        if not (written := run.written()):
            return "waiting"
        age = self._clock() - written
        usual = run.seconds / run.lines if run.lines else 0.0
        return "training" if age < max(_PATIENCE, 5 * usual) else "silent"


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is drawn of them: every evaluation, and not too many lines of training."""
    logs = [line for line in lines if "val_loss" not in line]
    every = -(-len(logs) // _MOST_LINES) or 1
    kept = {id(line) for line in logs[::-1][::every]}  # the last one is always among them
    return [
        {key: line[key] for key in _DRAWN if is_number(line.get(key))}
        for line in lines
        if "val_loss" in line or id(line) in kept
    ]
