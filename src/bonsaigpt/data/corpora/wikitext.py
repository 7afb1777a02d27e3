"""Source `wikitext`: WikiText-2 and -103 (Merity et al. 2016), one document an article, from files or from the hub.

Both forms, raw and tokenised, are lines: an article begins at a heading of one equals sign, `` = Title = ``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from bonsaigpt.config import WikitextData
from bonsaigpt.data.corpora.compressed import open_bytes
from bonsaigpt.data.corpora.document import check_text, decode, in_parts, lines
from bonsaigpt.data.corpora.files import find, left_out, over_files
from bonsaigpt.data.corpora.hub import open_hub
from bonsaigpt.data.corpora.source import Document, Source, as_it_is
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance

__all__ = ["articles", "detokenized", "open_wikitext"]

_HEADING = re.compile(r" = (?!= )(.+) = \s*")


def open_wikitext(config: WikitextData, *, hashes: FileHashes, download: bool, advance: Advance) -> Source:
    """The articles, from ``config.path`` or from the hub."""
    clean = _detokenize if config.detokenize else as_it_is
    settings = ["wikitext", config.detokenize]
    if config.path is None:
        return open_hub(
            config,
            hashes=hashes,
            download=download,
            advance=advance,
            group=articles,
            clean=clean,
            settings=settings,
        )
    found = find(config.path, config.pattern)
    readers = [_articles_of_file] * len(found)
    return over_files(
        str(config.path),
        found,
        readers,
        settings=settings,
        hashes=hashes,
        advance=advance,
        clean=clean,
        note=partial(left_out, config.path, config.pattern),
    )


def _articles_of_file(path: Path, name: str) -> Iterator[tuple[Document, int]]:
    with open_bytes(path) as (file, taken):
        check_text(path, file)
        rows = (
            (f"{name}, line {number}", decode(path, line, offset, f"line {number}, "))
            for number, offset, line in lines(path, file)
        )
        for title, text in articles(rows):
            for document in in_parts(title, text):
                yield document, taken()


def articles(rows: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Lines, each with its name, to articles.

    Raises:
        DataError: there is text before the first heading.
    """
    gathered: list[str] = []
    where = ""
    after_blank = True
    for name, row in rows:
        line = row if row.endswith("\n") else row + "\n"  # the hub's rows of empty lines have no line end
        is_blank = line.isspace()
        if after_blank and _HEADING.fullmatch(line):
            if gathered:
                yield where, "".join(gathered)
            gathered, where = [], f"{name}: {line.strip(' =')}"
        elif not gathered and not is_blank:
            raise DataError(
                f"{name} is no WikiText, which begins with a line ' = Title = ': read it with --data.kind files."
            )
        if gathered or not is_blank:
            gathered.append(line)
        after_blank = is_blank
    if gathered:
        yield where, "".join(gathered)


def _detokenize(document: Document) -> Document:
    return replace(document, text=detokenized(document.text))


_RULES = [
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([.,;:?!%)\]])"), r"\1"),
    (re.compile(r"([(\[$£€]) "), r"\1"),
    (re.compile(r" ('(?:s|t|re|ve|d|ll|m)|n't)\b"), r"\1"),
    (re.compile(r'" ([^"\n]*?) "'), r'"\1"'),
    (re.compile(r"^ | (?=\n)", flags=re.MULTILINE), ""),
]


def detokenized(text: str) -> str:
    """The text as it was before the tokenisation, as far as that can be told; ``<unk>`` stays."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
