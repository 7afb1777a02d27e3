"""Measured figures on the pages come from result files, and what does not is known and may only become less."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
figures: ModuleType = importlib.import_module("figures")
results: ModuleType = importlib.import_module("results")

MEASURED = re.compile(r"\d\.\d|\d,\d{3}|\d ?%|\d ?(?:ms|s|MB|MiB|kB|GB|x)\b|[+-]\d")
"""What a cell of a table has that looks like something measured."""

PEERS = "needs other projects (nanoGPT, LitGPT, Hugging Face, tiktoken), which are not on every machine"
LONG = "measured on many seeds before outputs were kept; the command beside it takes longer than half an hour"
HAND = (
    "of runs whose outputs were not kept; the command beside it takes minutes, or texts that are not on every machine"
)
KNOWN = "not measured: limits, sizes and examples"

BY_HAND = [
    ("LOG.md", "Date", PEERS),
    ("README.md", "What", PEERS),
    ("blocks.md", "variant", LONG),
    ("blocks.md", "variant", LONG),
    ("blocks.md", "attention", KNOWN),
    ("corpora.md", "source", KNOWN),
    ("data.md", "--data.tokenizer.kind", KNOWN),
    ("decoding.md", "", PEERS),
    ("health.md", "In health.jsonl", KNOWN),
    ("health.md", "", KNOWN),
    ("kronecker.md", "kind", KNOWN),
    ("kronecker.md", "", LONG),
    ("kronecker.md", "", LONG),
    ("optimizers.md", "Variant", LONG),
    ("reading.md", "way", HAND),
    ("sampling.md", "Rule", KNOWN),
    ("settings.md", "preset", KNOWN),
    ("studies.md", "shakespeare-char, 300 of its 2,000 steps", LONG),
    ("studies.md", "shakespeare-char-fast (Muon), an earlier form of it, 215 steps", LONG),
    ("tokenizers.md", "--data.tokenizer.kind", KNOWN),
    ("tokenizers.md", "tokenizer", HAND),
    ("tokenizers.md", "model", KNOWN),
    ("tokenizers.md", "encoder, one thread", PEERS),
    ("tokenizers.md", "encoder, two threads", PEERS),
    ("tokenizers.md", "text", LONG),
    ("toys.md", "recipe", HAND),
]
"""Tables with figures that no result stands behind: page, first cell of the header, and why. It only gets shorter."""


def unmarked(name: str, page: str) -> Iterator[tuple[str, str]]:
    """Page and first cell of the header of tables that look measured and come from nowhere."""
    for table in results.tables(page):
        cells = [re.sub("`[^`]*`", "", cell) for row in table.cells for cell in row[1:] if "<!--" not in cell]
        if not table.mark and any(MEASURED.search(cell) for cell in cells):
            yield name, table.name


def test_every_page_says_what_its_results_say() -> None:
    for page in figures.PAGES:
        assert figures.written(page) == page.read_text(encoding="utf-8"), "python docs/figures.py fill"


def test_tables_come_from_results() -> None:
    found = Counter(one for page in figures.PAGES for one in unmarked(page.name, page.read_text(encoding="utf-8")))
    known = Counter((page, first) for page, first, _ in BY_HAND)
    assert not sorted(found - known), "keep its result (python docs/figures.py keep) and mark the table"
    assert not sorted(known - found), "these are written from results now: strike them out"


def test_a_table_from_nowhere_is_seen() -> None:
    table = "| Policy | Added |\n|---|---|\n| `full` | +0.25 |\n"
    assert list(unmarked("a.md", table)) == [("a.md", "Policy")]
    assert list(unmarked("a.md", table.replace("Policy", ""))) == [("a.md", "")]
    assert not list(unmarked("a.md", f"<!--a: {{b}}-->\n\n{table}"))
    assert not list(unmarked("a.md", table.replace("+0.25", "yes")))


def test_results_name_command_day_and_machine_and_are_used() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in figures.PAGES)
    for name, result in results.read_results().items():
        assert result.command.split()[0] in ("bonsai", "python")
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", result.day)
        assert "core" in result.machine
        assert re.search(rf"(?:<!--|\| ){re.escape(name)}[:/]", pages), f"no page says what {name} found"


ONE = results.Result(
    command="python benchmarks/a.py",
    day="2026-01-02",
    machine="two cores",
    figures={"arms": {"int4": {"added": 0.125, "seeds": [1, 2.5]}, "int4(hadamard)": {"added": -0.0625, "seeds": []}}},
)
MARK = "<!--one/arms/*: {added:+.3f} | | {seeds:.1f}-->\n\n"
TABLE = "| Format | Added | Bits | Seeds |\n|---|---|---|---|\n"


def read(name: str) -> results.Result:
    return {"one": ONE, "two": replace(ONE, figures={"arms": {"int4": {"added": 7}}})}[name]


def test_a_table_is_written() -> None:
    page = MARK + TABLE + "| **`int4`**: so | **?** more | 4.5 | ? |\n| `int4(hadamard)` (so) | ? | | |\n\nText.\n"
    wanted = (
        TABLE + "| **`int4`**: so | **+0.125** | 4.5 | 1.0, 2.5 |\n| `int4(hadamard)` (so) | -0.062 | | |\n\nText.\n"
    )
    assert results.write(page, read) == MARK + wanted
    assert results.write(MARK + wanted, read) == MARK + wanted
    assert results.write(wanted, read) == wanted, "no mark, nothing written"


def test_columns_of_two_results() -> None:
    page = "<!--one/arms/*: {added:.2%} | two/arms/*: {added}-->\n\n| F | a | b |\n|---|---|---|\n| int4 | ? | ? |\n"
    assert "| int4 | 12.50 % | 7 |\n" in results.write(page, read)


def test_the_list_of_results_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    ONE.save(tmp_path / "one.json")
    page = "<!--results-->\n\n| Result | Command | Day |\n|---|---|---|\n| gone | | |\n\nText.\n"
    wanted = page.replace("| gone | | |", "| `one` | `python benchmarks/a.py` | 2026-01-02 |")
    assert results.write(page) == wanted
    assert results.read_result("one") == ONE


def test_a_first_column_may_be_left_alone() -> None:
    page = "<!--one/arms/*: | {added:g}-->\n\n| F | a | b |\n|---|---|---|\n| int4 | 4.5 | ? |\n"
    assert "| int4 | 4.5 | 0.125 |\n" in results.write(page, read)


def test_a_figure_in_a_text_is_written() -> None:
    page = "It is <!--one/arms/int4: {added:+.2f} to {seeds/1:g}-->?<!--/-->, on <!--one: {day}-->?<!--/-->.\n"
    filled = results.write(page, read)
    assert "-->+0.12 to 2.5<!--/-->, on" in filled
    assert "-->2026-01-02<!--/-->" in filled
    assert results.write(filled, read) == filled
    assert results.write(filled.replace("+0.12", "+0.13"), read) == filled


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (MARK + TABLE + "| int5 | ? | | |\n", "row 'int5': result 'one' has no 'int5'"),
        (MARK + "| F | a |\n|---|---|\n| int4 | ? |\n", "3 columns are to be filled"),
        ("It is <!--one/arms: {int4/kl}-->?<!--/-->", "no 'kl' at 'arms/int4/kl'"),
    ],
)
def test_what_is_not_there_is_refused(page: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        results.write(page, read)


def test_no_mark_begins_a_line_of_text() -> None:
    for page in figures.PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^<!--[^\n]*?-->[^\n]", text, flags=re.MULTILINE), "Markdown takes such a line for HTML"


def test_a_benchmark_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    monkeypatch.setattr(figures, "PAGES", ())
    log, table = tmp_path / "log", tmp_path / "kv.csv"
    log.write_text('A CPU, 2 cores, torch 2.13\nint4 +0.1\n{"formats": {"int4": 0.1}}\n', encoding="utf-8")
    table.write_text("policy,bits,note,command\nfull,16384,,c\nint4,4096.5,x,c\n", encoding="utf-8")
    call = ["figures.py", "keep", "one", "--log", str(log), "--day", "2026-01-02"]
    monkeypatch.setattr(sys, "argv", [*call, "--", "python", "benchmarks/a.py", "--text", "a b"])
    figures.main()
    one = results.Result(**json.loads((tmp_path / "one.json").read_text()))
    assert one.command == "python benchmarks/a.py --text 'a b'"
    assert (one.machine, one.figures) == ("A CPU, 2 cores, torch 2.13", {"formats": {"int4": 0.1}})
    monkeypatch.setattr(sys, "argv", [*call, "--rows", str(table), "--", "bonsai", "study", "kv", "runs/a"])
    figures.main()
    rows = json.loads((tmp_path / "one.json").read_text())["figures"]
    assert rows == {"full": {"bits": 16384, "note": ""}, "int4": {"bits": 4096.5, "note": "x"}}
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 0, "val_loss": 2.5}\n{"step": 10, "loss": 2.0}\n', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*call, "--rows", str(metrics), "--key", "step", "--", "bonsai", "train", "a"])
    figures.main()
    assert json.loads((tmp_path / "one.json").read_text())["figures"] == {"0": {"val_loss": 2.5}}
    log.write_text("nothing\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*call, "--", "python", "benchmarks/a.py"])
    with pytest.raises(SystemExit, match="no JSON object"):
        figures.main()
