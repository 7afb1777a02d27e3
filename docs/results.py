"""Results of measurements, and how they get onto the pages.

A result is the JSON object that a benchmark ends with, or the CSV of a study: docs/recorded/results/NAME.json, with the
command, the day and the machine. A page names it in a mark, WHERE: WHAT. WHERE is the result and the way into it, WHAT
a text with places to fill, as ``str.format`` has them:

    <!--kv-formats/formats/int8: {added:+.5f} ± {margin:.5f}-->+0.00003 ± 0.00006<!--/-->     in a text

    <!--kv-formats/formats/*: {bits:g} | {added:+.5f} ± {margin:.5f} | {kl:.5f}-->            alone, above a table

    | Format | Bits a number | Added | KL |
    |---|---|---|---|
    | `int8` | 8.25 | +0.00003 ± 0.00006 | 0.00001 |

Above a table it says what stands in the second column, the third, and so on; ``*`` is the name of the row: its first
cell, or that up to ": " or " (", where words for people follow. A column goes on with the WHERE of the one before it.
What the mark says nothing of (an empty column) and empty cells stay as they are, and so does what is bold. Several
values that stand in one place are joined by commas. ``{command}``, ``{day}`` and ``{machine}`` are known of every
result. ``<!--results-->`` above a table makes it the list of all results. A mark inside a text never begins a line:
Markdown would take the line for HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Result", "Table", "read_result", "read_results", "tables", "write"]

RESULTS = Path(__file__).resolve().parent / "recorded" / "results"

_PLACE = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
_WHERE = re.compile(r"([A-Za-z][^{}|]*):(?: ([^{}]*\{.*))?")
_IN_TEXT = re.compile(r"<!--([A-Za-z][^{}|\n]*: [^\n]*?\{[^\n]*?)-->(?!\n)(.*?)<!--/-->", re.DOTALL)
_TABLE = re.compile(r"(?:^<!--([A-Za-z][^{}|\n]*: .*\{.*|results)-->\n\n)?((?:^\|.*\n)+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one measurement found."""

    command: str
    day: str
    machine: str
    figures: dict[str, Any]

    def save(self, file: Path) -> None:
        """As JSON, two levels of it laid out for readers of differences."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_spread(asdict(self), 3) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    mark: str
    """What fills it; empty if it was written by hand."""
    rows: list[str]
    """Lines, with header and rule."""

    @property
    def name(self) -> str:
        """The first cell of its header."""
        return re.sub("[*`]", "", self.rows[0].strip().strip("|").split("|")[0]).strip()

    @property
    def cells(self) -> list[list[str]]:
        """Without header and rule."""
        return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in self.rows[2:]]


def read_result(name: str) -> Result:
    """By its name.

    Raises:
        ValueError: there is no such result.
    """
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"no result '{name}' in {RESULTS}; there are {', '.join(sorted(read_results()))}")
    return Result(**json.loads(file.read_text(encoding="utf-8")))


def read_results() -> dict[str, Result]:
    """All of them, by their names."""
    return {file.stem: read_result(file.stem) for file in sorted(RESULTS.glob("*.json"))}


def tables(page: str) -> Iterator[Table]:
    """The page's tables, in order."""
    for found in _TABLE.finditer(page):
        yield Table(found[1] or "", found[2].splitlines())


def write(page: str, read: Callable[[str], Result] = read_result) -> str:
    """The page with everything that results say written anew.

    Raises:
        ValueError: a mark names a result, a way or a row that is not there.
    """

    def text(mark: re.Match[str]) -> str:
        [what] = _columns(mark[1])
        return f"<!--{mark[1]}-->{_fill(what, '', read)}<!--/-->"

    def table(found: re.Match[str]) -> str:
        if not found[1]:
            return found[0]
        rows = found[2].splitlines()
        if found[1] == "results":
            every = ((f"`{name}`", f"`{one.command}`", one.day) for name, one in read_results().items())
            return "".join(f"{line}\n" for line in ["<!--results-->", "", *rows[:2], *map(_line, every)])
        columns = _columns(found[1])
        lines = [*rows[:2], *(_row(row, columns, read) for row in rows[2:])]
        return f"<!--{found[1]}-->\n\n" + "".join(f"{line}\n" for line in lines)

    return _TABLE.sub(table, _IN_TEXT.sub(text, page))


def _columns(mark: str) -> list[tuple[str, str]]:
    """WHERE and WHAT of each column."""
    found, where = [], ""
    for column in mark.split("|"):
        own = _WHERE.fullmatch(column.strip())
        where, what = (own[1], own[2] or "") if own else (where, column.strip())
        found.append((where, what))
    return found


def _row(row: str, columns: list[tuple[str, str]], read: Callable[[str], Result]) -> str:
    first, *cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
    if len(columns) > len(cells):
        raise ValueError(f"{len(columns)} columns are to be filled, the table has {len(cells)} after the first: {row}")
    label = re.sub(r"[*`]", "", first)
    names = sorted({label, *(label[: m.start()] for m in re.finditer(r": | \(", label))}, key=len, reverse=True)
    for number, (where, what) in enumerate(columns):
        if not what or not cells[number]:
            continue
        for name in names:
            try:
                filled = _fill((where, what), name, read)
                break
            except ValueError as error:
                if name == names[-1]:
                    raise ValueError(f"row '{label}': {error}") from None
        cells[number] = _bold(filled, cells[number])
    return _line([first, *cells])


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _bold(filled: str, before: str) -> str:
    """With as many words in bold as were."""
    if not (old := re.match(r"\*\*(.+?)\*\*", before)):
        return filled
    words, many = filled.split(), len(old[1].split())
    return " ".join(["**" + " ".join(words[:many]) + "**", *words[many:]])


def _fill(column: tuple[str, str], name: str, read: Callable[[str], Result]) -> str:
    where, what = column
    result, *steps = where.split("/")
    found = read(result)

    def place(match: re.Match[str]) -> str:
        if match[1] in ("command", "day", "machine"):
            return str(getattr(found, match[1]))
        value: Any = found.figures
        for step in [*steps, *match[1].split("/")]:
            step = step.replace("*", name)
            if isinstance(value, list) and step.isdigit() and int(step) < len(value):
                value = value[int(step)]
            elif isinstance(value, dict) and step in value:
                value = value[step]
            else:
                raise ValueError(f"result '{result}' has no '{step}' at '{'/'.join(steps)}/{match[1]}'")
        values = value if isinstance(value, list) else [value]
        return ", ".join(format(one, match[2] or "").replace("%", " %") for one in values)

    return _PLACE.sub(place, what)


def _spread(value: Any, levels: int, indent: str = "") -> str:
    if not (levels and isinstance(value, dict) and value):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    lines = (f"{inner}{json.dumps(key)}: {_spread(one, levels - 1, inner)}" for key, one in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
