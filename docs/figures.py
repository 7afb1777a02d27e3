"""Figures and outputs on the handbook's pages, written from recordings of the pages' own commands and from results.

    python docs/figures.py record coins.md      # runs what was not recorded yet, into docs/recorded/coins.json
    python docs/figures.py keep kv-formats -- python benchmarks/kv_formats.py --steps 2000
    python docs/figures.py fill                 # writes what was recorded into the pages; a test holds that they agree

`keep` runs a command and keeps what it found in docs/recorded/results: the JSON object of its last line, or the rows of
a file that it wrote (`--rows runs/mine/studies/kv.csv --key policy`, or a run's `metrics.jsonl` with `--key step`: its
evaluations). `--log FILE --day DAY` reads what a command printed before. How pages name results says docs/results.py.

What the page's own commands printed is marked by their numbers:

    <!--2: loss ([0-9.]+)-->0.6365<!--/-->      what the pattern finds in the output of the page's second command
    <!--2 lines 0:5-->, a block, <!--/-->       lines of that output, as a slice counts them
    <!--commands-->, text, <!--/-->             when and where all of them were recorded

A mark inside a text never begins a line: Markdown would take the line for HTML.

Recording goes on where it was stopped: in the same folder, and as long as the commands before are still the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results import RESULTS, Result, write

__all__ = ["PAGES", "Recorded", "commands", "figures_of", "fill", "read_record", "record", "written"]

DOCS = Path(__file__).resolve().parent
RECORDS = DOCS / "recorded"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))

_FIGURE = re.compile(r"<!--(\d+): (.+?)-->(.*?)<!--/-->")
_LINES = re.compile(r"<!--(\d+) lines (-?\d*):(-?\d*)-->\n.*?<!--/-->", re.DOTALL)
_COMMANDS = re.compile(r"<!--commands-->.*?<!--/-->", re.DOTALL)


@dataclass(frozen=True)
class Recorded:
    """One command and what it printed."""

    command: str
    """As the page has it."""
    output: str
    """On standard output."""
    seconds: float
    """By the clock, with the start of the program."""
    machine: str
    day: str


def commands(page: str) -> list[str]:
    """The `bonsai` commands of the page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("bonsai ")]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines]


def read_record(page: Path) -> list[Recorded]:
    """What was recorded of a page; nothing of most."""
    file = RECORDS / f"{page.stem}.json"
    return [Recorded(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def fill(page: str, recorded: list[Recorded]) -> str:
    """The page with its figures and outputs written anew.

    Raises:
        ValueError: a command was changed since, or a mark finds nothing in what was recorded.
    """
    if (found := commands(page)) != [entry.command for entry in recorded]:
        raise ValueError(
            f"the page has {found}, recorded were {[entry.command for entry in recorded]}: record it again"
        )

    def figure(mark: re.Match[str]) -> str:
        number, pattern = int(mark[1]), mark[2]
        match = re.search(pattern, recorded[number - 1].output)
        if match is None:
            raise ValueError(
                f"'{pattern}' finds nothing in the output of command {number}: {recorded[number - 1].command}"
            )
        return f"<!--{number}: {pattern}-->{match[1]}<!--/-->"

    def lines(mark: re.Match[str]) -> str:
        begin, end = (int(text) if text else None for text in (mark[2], mark[3]))
        chosen = recorded[int(mark[1]) - 1].output.splitlines()[begin:end]
        block = "\n".join(line.rstrip() for line in chosen)
        return f"<!--{mark[1]} lines {mark[2]}:{mark[3]}-->\n\n```text\n{block}\n```\n\n<!--/-->"

    def about(_: re.Match[str]) -> str:
        days, machines = sorted({r.day for r in recorded}), sorted({r.machine for r in recorded})
        words = f"recorded on {days[-1]} by the page's commands; {'; '.join(machines)}"
        return f"<!--commands-->{words}<!--/-->"

    return _COMMANDS.sub(about, _LINES.sub(lines, _FIGURE.sub(figure, page)))


def written(page: Path) -> str:
    """The page with all that recordings and results say of it.

    Raises:
        ValueError: a mark names what is not there; with the page's name.
    """
    text, recorded = page.read_text(encoding="utf-8"), read_record(page)
    try:
        return write(fill(text, recorded) if recorded else text)
    except ValueError as error:
        raise ValueError(f"{page.name}: {error}") from None


def figures_of(output: str) -> dict[str, Any]:
    """The JSON object that a benchmark's output ends with.

    Raises:
        ValueError: its last line is none.
    """
    last = output.rstrip().rpartition("\n")[2]
    if not last.startswith("{"):
        raise ValueError(f"the last line is no JSON object: {last[:80]}")
    return dict(json.loads(last))


def rows_of(file: Path, key: list[str]) -> dict[str, Any]:
    """The rows of a CSV, or the evaluations of a run's metrics, by what their key columns hold, with commas between."""
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".jsonl":
            rows = [row for row in map(json.loads, lines) if "val_loss" in row]
        else:
            rows = [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(lines)]
    found = {}
    for row in rows:
        row.pop("command", None)  # of each point, where the result has that of all
        found[", ".join(str(row.pop(name)) for name in key)] = row
    return found


def _number(text: str) -> float | str:
    try:
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    except ValueError:
        return text


def keep(arguments: argparse.Namespace) -> None:
    """Run a command, or read what it printed, and write down its result."""
    words = arguments.command
    if arguments.log:
        output = arguments.log.read_text(encoding="utf-8")
    else:
        program = [sys.executable, *(["-m", "bonsaigpt"] if words[0] == "bonsai" else []), *words[1:]]
        output = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures = rows_of(arguments.rows, arguments.key.split(",")) if arguments.rows else figures_of(output)
    told = re.findall(r"^.*\d cores?, .*torch [\d.]+.*$", output, flags=re.MULTILINE)
    machine = figures.pop("machine", None) or (told[-1].strip() if told else _machine())
    result = Result(command=shlex.join(words), day=arguments.day, machine=machine, figures=figures)
    result.save(RESULTS / f"{arguments.name}.json")
    print(f"{RESULTS / arguments.name}.json; write it into the pages: python docs/figures.py fill")


def record(page: Path, folder: Path) -> None:
    """Run the page's commands one after the other in a folder, and write down what each printed as soon as it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    recorded = read_record(page)
    found = commands(page.read_text(encoding="utf-8"))
    same = sum(1 for _ in _while_equal(found, [entry.command for entry in recorded]))
    recorded = recorded[:same]
    for command in found[same:]:
        print(f"$ {command}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        words = [sys.executable, "-m", "bonsaigpt", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        seconds = round(time.perf_counter() - began, 1)
        recorded.append(Recorded(command, done.stdout, seconds, _machine(), f"{datetime.now(UTC):%Y-%m-%d}"))
        RECORDS.mkdir(exist_ok=True)
        text = json.dumps([asdict(entry) for entry in recorded], indent=1, ensure_ascii=False) + "\n"
        (RECORDS / f"{page.stem}.json").write_text(text, encoding="utf-8")


def _while_equal(a: list[str], b: list[str]) -> list[str]:
    same = []
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        same.append(left)
    return same


def _machine() -> str:
    threads = os.environ.get("OMP_NUM_THREADS")
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = re.findall(r"model name\s*: (.*)", info.read_text())
        name = names[0] if names else name
    return f"{os.cpu_count()} cores of {name}" + (f", {threads} thread" + "s" * (threads != "1") if threads else "")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="what", required=True)
    recording = verbs.add_parser("record", help="run a page's commands and write down what they print")
    recording.add_argument("page", help="a page of docs/")
    recording.add_argument("--folder", type=Path, help="where to run (default: a folder of the page's name here)")
    keeping = verbs.add_parser("keep", help="run a benchmark or a study and write down what it found")
    keeping.add_argument("name", help="of the result, as marks have it")
    keeping.add_argument("command", nargs="+", help="after --")
    keeping.add_argument("--rows", type=Path, metavar="FILE", help="written by the command; else its last line counts")
    keeping.add_argument("--key", default="policy", help="columns that name a row (default: policy)")
    keeping.add_argument("--log", type=Path, help="what the command printed, so that it is not run")
    keeping.add_argument("--day", default=f"{datetime.now(UTC):%Y-%m-%d}", help="of the run (default: today)")
    verbs.add_parser("fill", help="write everything into the pages")
    arguments = parser.parse_args()
    try:
        if arguments.what == "keep":
            return keep(arguments)
        if arguments.what == "record":
            record(DOCS / arguments.page, arguments.folder or Path(arguments.page).with_suffix(""))
        texts = {page: written(page) for page in PAGES}
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"figures.py: {error}") from None
    for page, text in texts.items():
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(page)
    return None


if __name__ == "__main__":
    main()
