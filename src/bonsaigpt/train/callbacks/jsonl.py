"""``metrics.jsonl``: one JSON object a line, appended as training goes; the report and `compare` read it.

A run that went back to an earlier step notes it in ``rollbacks.jsonl``; the metrics are those of the path it kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from bonsaigpt.files import write_text, writing
from bonsaigpt.train.events import Callback, EvalEvent, LogEvent, RollbackEvent, StartEvent

__all__ = ["JsonLines", "LineFile", "Tail", "read_metrics"]


class JsonLines(Callback):
    """Lines of training carry ``loss``, lines of evaluation ``val_loss``; both carry step, tokens and seconds."""

    def __init__(self) -> None:
        self._file = LineFile()

    def on_start(self, event: StartEvent) -> None:
        # A killed run may have written past its last checkpoint, or half a line; those steps come again, and so does
        # the evaluation of the checkpoint itself, which nobody may have heard of.
        self._file.open(
            event.run.path / "metrics.jsonl",
            lambda line: line["step"] < event.step or (line["step"] == event.step > 0 and "val_loss" not in line),
        )

    def on_log(self, event: LogEvent) -> None:
        self._write(asdict(event))

    def on_eval(self, event: EvalEvent) -> None:
        scores = {f"val_{name}": value for name, value in event.evaluation.as_dict().items()}
        self._write({"step": event.step, "tokens": event.tokens, "seconds": event.seconds, **scores})

    def on_rollback(self, event: RollbackEvent) -> None:
        path = self._file.path
        self._file.open(path, lambda line: line["step"] <= event.back_to)
        with writing(path), path.with_name("rollbacks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        # JSON knows neither NaN nor infinity.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in finite.items()})


class LineFile:
    """A file to which lines of JSON are added, each with its ``step``."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    @property
    def path(self) -> Path:
        """Of the file that is open."""
        assert self._file is not None
        return Path(self._file.name)

    def open(self, path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Go on with the file, without the lines whose steps come again; those that are kept."""
        self.close()
        kept = [line for line in read_metrics(path) if is_kept(line)]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        with writing(path):
            self._file = path.open("a", encoding="utf-8")
        return kept

    def write(self, record: dict[str, Any]) -> None:
        """One more line; it is in the file when this returns."""
        assert self._file is not None
        with writing(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Nothing is open any more; nothing may have been."""
        if self._file is not None:
            with suppress(OSError):  # each line was flushed when written; what is left was refused then, and said so
                self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a torn last line is left out, a missing file has none."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return _records(content)


class Tail:
    """Reads on in a metrics file that some other process writes."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._file = path, 0, -1

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The whole lines that are new, and whether those before them are void: a run that goes on from a checkpoint,
        or back to one, writes the file anew."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                anew = self._at > 0 and (status.st_ino != self._file or status.st_size < self._at)
                self._at, self._file = 0 if anew else self._at, status.st_ino
                file.seek(self._at)
                new, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return [], False
        self._at += len(new) + len(newline)
        return _records(new), anew


def _records(content: bytes) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records
