"""What the benchmarks share: the machine in one line, interleaved rounds, statistics, tables, and the last line.

Every benchmark prints progress on stderr, a table for people on stdout, and as its last line one JSON object with
all figures (``finish``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bonsaigpt.errors import BonsaiError
from bonsaigpt.units import named

__all__ = ["Ledger", "Summary", "finish", "guarded", "interleave", "machine", "parser", "positive", "progress", "show"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A handful of measurements of one thing."""

    median: float
    low: float
    """The smallest."""
    high: float
    """The largest."""
    quartile_1: float
    quartile_3: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Of one or more measurements."""
        low, first, median, third, high = (round(float(q), 6) for q in np.percentile(values, [0, 25, 50, 75, 100]))
        return cls(median=median, low=low, high=high, quartile_1=first, quartile_3=third, n=len(values))

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)

    def text(self, digits: int = 2) -> str:
        """``1.05 (quartiles 1.02 to 1.08, all 0.99 to 1.12, n = 20)``."""
        numbers = (self.median, self.quartile_1, self.quartile_3, self.low, self.high)
        median, first, third, low, high = (f"{value:,.{digits}f}" for value in numbers)
        return f"{median} (quartiles {first} to {third}, all {low} to {high}, n = {self.n})"


class Ledger:
    """Finished runs in a file, one JSON object a line: a second call goes on where the first was stopped. A run is
    known by all of its settings, and not by its name, which stays the same when somebody changes what it stands for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Any] = {}
        if path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._found = {_key(line["settings"]): line["found"] for line in lines}

    def find(self, settings: Any) -> Any:
        """What came of the run with these settings; None if there was none yet."""
        return self._found.get(_key(settings))

    def add(self, run: str, settings: Any, found: Any) -> None:
        """One more; its name is for readers of the file."""
        self._found[_key(settings)] = found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": run, "found": found, "settings": settings}) + "\n")


def _key(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True)


def machine(threads: int = 0) -> str:
    """CPU model, cores, versions and threads in one line; ``threads`` 0 means as many as torch chooses."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():  # Linux: platform.processor() is often empty or only "x86_64" there
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return (
        f"{model}, {named(_cores(), 'core')}, {torch.backends.cpu.get_cpu_capability()}, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{named(threads or torch.get_num_threads(), 'thread')}"
    )


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # cores this process may use, not those of the whole machine
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def interleave(sides: Sequence[str], rounds: int) -> Iterator[tuple[int, list[str]]]:
    """Round numbers and the order of the sides, reversed every other round: no side always runs on a warm machine."""
    for number in range(rounds):
        yield number, list(sides) if number % 2 == 0 else list(reversed(sides))


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr; call ``advance(done, note)``. Where stderr is no terminal the notes become plain lines."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
        bar.disable = not console.is_terminal
        task = bar.add_task(what, total=total, note="")

        def advance(done: int, note: str = "") -> None:
            bar.update(task, completed=done, note=note)
            if note and not console.is_terminal:
                print(f"{what} {done}/{total}: {note}", file=sys.stderr, flush=True)

        yield advance


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; all columns but the first to the right."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    print(title)  # a title of rich's own would be broken to the table's width
    Console(width=120).print(table, highlight=False)


def finish(figures: Mapping[str, Any]) -> None:
    """Print the last line: one JSON object with all figures, for programs."""
    sys.stdout.flush()
    print(json.dumps(figures), flush=True)


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser that shows units, defaults and an example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def positive(text: str) -> int:
    """For argparse: a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def guarded(main: Callable[[], None]) -> int:
    """Run a benchmark; an error that the user can mend is one sentence on stderr and exit code 2."""
    try:
        main()
    except BonsaiError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no figures", file=sys.stderr)
        return 130
    return 0
