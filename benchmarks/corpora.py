"""How fast text comes out of a source: each form of file read as a stream, and a dump of Wikipedia cleaned.

The dump is made here: the given text as articles, with links, references, templates, files and tables strewn in until
about half of it is markup, as in the English Wikipedia. Cleaning is compared with mwparserfromhell's own `strip_code`,
in turns.
"""

from __future__ import annotations

import bz2
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mwparserfromhell
import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard
from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show

from bonsaigpt.config import FilesData, TextData, WikipediaData
from bonsaigpt.data.corpora import open_text
from bonsaigpt.data.corpora.source import Cursor, Document
from bonsaigpt.data.hashes import FileHashes

_ARTICLE = 6000
"""Characters of text in an article."""
_CLEANED = 1_500_000
"""Characters of markup that are cleaned in a round."""


def main() -> None:
    """Write the files, read them, print."""
    arguments = _arguments()
    print(f"{machine(1)}\n")
    articles = _articles(arguments.text.read_text(encoding="utf-8"), arguments.mb * 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        forms = _write(Path(folder), articles)
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        with progress("rounds", arguments.rounds) as advance:
            for number, order in interleave(list(forms), arguments.rounds):
                for name in order:
                    seconds[name].append(_read(forms[name]))
                advance(number + 1, "")
        content = {name: _content(config) for name, config in forms.items()}
        on_disk = {name: (Path(folder) / f"a.{name}").stat().st_size for name in forms}
        cleaning = _clean(forms["xml"], arguments.rounds)
    rates = {name: Summary.of([content[name] / 1e6 / s for s in values]) for name, values in seconds.items()}
    show(
        f"reading {arguments.mb} MB of text, {arguments.rounds} rounds, one process, CPU seconds",
        ["form", "MB/s of text or markup, median", "lowest", "highest", "MB/s of the file"],
        [
            [
                name,
                *(f"{r:.1f}" for r in (rate.median, rate.low, rate.high, rate.median * on_disk[name] / content[name])),
            ]
            for name, rate in rates.items()
        ],
    )
    show(
        "cleaning the dump's articles, one core, CPU seconds",
        ["way", "MB/s of markup, median", "lowest", "highest"],
        [[name, f"{s.median:.2f}", f"{s.low:.2f}", f"{s.high:.2f}"] for name, s in cleaning.items()],
    )
    finish(
        {
            "benchmark": "corpora",
            "machine": machine(1),
            "reading": {name: rate.as_dict() for name, rate in rates.items()},
            "cleaning": {name: rate.as_dict() for name, rate in cleaning.items()},
        }
    )


def _articles(text: str, size: int) -> list[str]:
    text = text.replace("<unk>", "unknown").replace(" @-@ ", "-").replace("=", "")
    found = [text[i : i + _ARTICLE] for i in range(0, len(text), _ARTICLE)]
    return [f"{number} {found[number % len(found)]}" for number in range(max(1, size // _ARTICLE))]


def _write(folder: Path, articles: list[str]) -> dict[str, TextData]:
    """The same text in every form, by the form's name."""
    text = "\n".join(articles).encode()
    lines = "".join(json.dumps({"text": article}) + "\n" for article in articles).encode()
    dump = "".join(_dump(articles)).encode()
    raw = {
        "txt": text,
        "jsonl": lines,
        "jsonl.gz": gzip.compress(lines, 6),
        "jsonl.zst": zstandard.ZstdCompressor(3).compress(lines),
        "jsonl.bz2": bz2.compress(lines),
        "xml": dump,
        "xml.bz2": bz2.compress(dump),
    }
    for name, content in raw.items():
        (folder / f"a.{name}").write_bytes(content)
    parquet.write_table(pa.table({"text": articles}), folder / "a.parquet", compression="zstd")
    kinds = {name: WikipediaData if name.startswith("xml") else FilesData for name in [*raw, "parquet"]}
    return {name: kind(path=folder / f"a.{name}") for name, kind in kinds.items()}


def _dump(articles: list[str]) -> Iterator[str]:
    yield '<mediawiki><siteinfo><namespaces><namespace key="6">File</namespace></namespaces></siteinfo>\n'
    draws = random.Random(1)
    for number, article in enumerate(articles):
        markup = _marked(article, draws).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"<page><title>Article {number}</title><ns>0</ns><revision><text>{markup}</text></revision></page>\n"
    yield "</mediawiki>\n"


def _marked(text: str, draws: random.Random) -> str:
    """Text with the markup of a Wikipedia strewn in."""
    row = '|-\n| 1999 || [[A name]] || style="x" | 3.5\n'
    table = f'{{| class="wikitable"\n! Year !! Name !! Value\n{row * 12}|}}\n'
    infobox = "{{Infobox\n" + "".join(f"| key{i} = {{{{nowrap|value {i}}}}}\n" for i in range(20)) + "}}\n"
    image = "[[File:Some image.jpg|thumb|left|A caption with a [[link]] in it]]\n"
    cite = "<ref>{{cite web|last=Name|title=A title of some length|url=https://example.org/a/b|date=2001}}</ref>"
    words = text.split(" ")
    for i, word in enumerate(words):
        draw = draws.random()
        if draw < 0.04:
            words[i] = f"[[{word} (thing)|{word}]]"
        elif draw < 0.06:
            words[i] = f"[[{word}]]"
        elif draw < 0.07:
            words[i] = f"''{word}''"
        elif word == "." and draw < 0.5:
            words[i] = word + cite
    body = " ".join(words)
    third = len(body) // 3
    end = f"{table}\n{{{{reflist}}}}\n[[Category:Things]]\n"
    return f"{infobox}{image}{body[:third]}\n\n== Heading ==\n{image}{body[third:]}\n{end}"


def _stream(config: TextData) -> Iterator[Document]:
    source = open_text(config, hashes=FileHashes())
    return (document for document, _ in source.stream(Cursor()))


def _read(config: TextData) -> float:
    documents = _stream(config)
    began = time.process_time()
    for _ in documents:
        pass
    return time.process_time() - began


def _content(config: TextData) -> int:
    return sum(len(document.text.encode()) for document in _stream(config))


def _clean(config: TextData, rounds: int) -> dict[str, Summary]:
    clean = open_text(config, hashes=FileHashes()).clean
    some: list[Document] = []
    for document in _stream(config):
        some.append(document)
        if sum(len(d.text) for d in some) > _CLEANED:
            break
    size = sum(len(document.text.encode()) for document in some)
    ways: dict[str, Callable[[Document], object]] = {
        "ours": clean,
        "strip_code": lambda document: mwparserfromhell.parse(document.text).strip_code(),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _, order in interleave(list(ways), rounds):
        for name in order:
            began = time.process_time()
            for document in some:
                ways[name](document)
            rates[name].append(size / 1e6 / (time.process_time() - began))
    return {name: Summary.of(values) for name, values in rates.items()}


def _arguments() -> Any:
    example = "python benchmarks/corpora.py --text wikitext2/valid.txt --mb 30"
    words = parser("How fast is text read, and how fast is Wikipedia cleaned?", example)
    words.add_argument("--text", type=Path, required=True, metavar="FILE", help="prose to make articles of, 1 MB or so")
    words.add_argument("--mb", type=positive, default=30, help="MB of text in each file (default: 30)")
    words.add_argument("--rounds", type=positive, default=5, help="times that each is read (default: 5)")
    return words.parse_args()


if __name__ == "__main__":
    sys.exit(guarded(main))
