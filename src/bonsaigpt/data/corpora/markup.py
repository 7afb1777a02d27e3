"""Wikitext, the markup of MediaWiki, to plain text. The parser is mwparserfromhell; what stays is decided here.

Stays: paragraphs, headings with something below them, items of lists, labels of links, the source of formulas between
dollar signs, code. Goes: templates, tables, references, galleries, files with their captions, categories, links to
other languages, magic words, comments, tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from bonsaigpt.data.corpora.brackets import without_brackets
from bonsaigpt.data.corpora.source import Document
from bonsaigpt.errors import DeviceError

__all__ = ["FORMAT", "CleanArticle", "plain"]

FORMAT = 2
"""Counts the changes of what this file makes of a page."""


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_DROPPED = _names(
    "ref references table gallery timeline imagemap mapframe maplink graph inputbox score hiero templatestyles "
    "templatedata indicator categorytree includeonly style script ce chem rss section hr"
)
_LITERAL = _names("nowiki pre syntaxhighlight source")
_FORMULA = "math"
_BLOCKS = _names("p div br li dd dt ul ol dl blockquote poem center pre syntaxhighlight source h1 h2 h3 h4 h5 h6")
"""Tags that begin and end a line."""

_MEDIA = re.compile(
    r"\.(jpe?g|png|svg|gif|webp|tiff?|og[gva]|webm|mp[34]|wav|flac|midi?|pdf|djvu|stl)\s*$", re.IGNORECASE
)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*|simple")
_MAGIC = re.compile(r"__[^\W\d_]+(_[^\W\d_]+)*__")
_QUOTED_LINE = re.compile("^.*''.*$", re.MULTILINE)
_APOSTROPHES = re.compile("'{2,}")
_CONVERTED = re.compile(r"-\{([^{}]*)\}-")
_TAG = re.compile(r"</?[A-Za-z][^<>\n]*>")
_BROKEN = re.compile(r"\{\{+|\}\}+|\[\[+|\]\]+|^[ \t]*(\{\||\|).*$", re.MULTILINE)
_EMPTY_BRACKETS = re.compile(r"\s*(\([\s,;:–/]*\)|（[\s,;:，；：、–/]*）|\[\s*\])")
_BRACKET_START = re.compile(r"([(（])[\s,;:，；：、–]+")
_BRACKET_END = re.compile(r"(?<![\s,;:，；：、])(?:[^\S\n]+–)?[\s,;:，；：、]*(?=[)）])")
"""What is left before a closing bracket; a dash behind a word stays, as in `(1950–)`."""
_SPACES = re.compile(r"[^\S\n]+")
_SPACE_AT_ENDS = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")
_HEADING = "\x01"
"""Begins the line of a heading, with its level, until it is known whether anything stands below it. XML has no such
character; nor has it the zero byte, which stands for text that is not to be touched."""
_KEPT = re.compile(r"\x00(\d+)\x00")


@dataclass(frozen=True)
class CleanArticle:
    """Title and markup to title and text; drops what has next to no text."""

    hidden: frozenset[str]
    """Prefixes of links to files and categories, in lower case."""
    min_characters: int

    def __call__(self, document: Document) -> Document | None:
        title, _, markup = document.text.partition("\n") if document.start == 0 else ("", "", document.text)
        text = plain(markup, self.hidden)
        if len(text) < self.min_characters and document.total is None:
            return None
        return replace(document, text="\n\n".join(filter(None, (title, text))))


def plain(markup: str, hidden: frozenset[str]) -> str:
    """The text of a page.

    Args:
        markup: wikitext.
        hidden: prefixes of links that show nothing where they stand, in lower case.
    """
    try:
        import mwparserfromhell
    except ImportError:
        raise DeviceError(
            "dumps of Wikipedia need the package mwparserfromhell: pip install 'bonsaigpt[corpora]'"
        ) from None
    writer = _Writer(hidden)
    # Bold and italics are apostrophes that `_tidy` removes: as tags they double the time, and an odd one misleads.
    writer.nodes(mwparserfromhell.parse(without_brackets(markup), skip_style_tags=True).nodes)
    return writer.text()


class _Writer:
    """Goes through the nodes of a page and gathers its text."""

    def __init__(self, hidden: frozenset[str]) -> None:
        self._hidden = hidden
        self._out: list[str] = []
        self._kept: list[str] = []

    def nodes(self, nodes: Iterable[Any]) -> None:
        """Write nodes one after the other."""
        for node in nodes:
            match type(node).__name__:
                case "Text":
                    self._out.append(node.value)
                case "Wikilink":
                    self._link(node)
                case "Heading":
                    self._out.append(f"\n{_HEADING}{node.level}")
                    self.nodes(node.title.nodes)
                    self._out.append("\n")
                case "ExternalLink":
                    if node.title is not None:
                        self.nodes(node.title.nodes)
                    elif not node.brackets:
                        self._keep(str(node.url))
                case "HTMLEntity":
                    self._keep(node.normalize().replace("\xa0", " "))
                case "Tag":
                    self._tag(node)
                case _:  # templates, their arguments, comments
                    pass

    def _link(self, node: Any) -> None:
        target = str(node.title).strip()
        prefix, colon, _ = target.partition(":")
        label = node.text
        if colon and prefix:  # an empty one, [[:Category:X]], asks for a link like any other
            prefix = prefix.strip().replace("_", " ")
            if prefix.lower() in self._hidden or _MEDIA.search(target) or _LANGUAGE.fullmatch(prefix):
                return
        if label is not None and label.nodes:
            self.nodes(label.nodes)
        else:
            self._out.append(target.removeprefix(":"))

    def _tag(self, node: Any) -> None:
        name = str(node.tag).strip().lower()
        contents = node.contents
        if name in _DROPPED or _is_hidden(node):
            if name in _DROPPED and name in ("hr", "table", "gallery"):
                self._end_line()
            return
        if name == _FORMULA:
            self._keep(f"${str(contents).strip()}$")
            return
        is_block = name in _BLOCKS
        if is_block:
            self._end_line()
        if name in _LITERAL:
            self._keep(str(contents).strip("\n") if is_block else str(contents))
        elif contents is not None:
            self.nodes(contents.nodes)
        if is_block and contents is not None and not node.wiki_markup:
            self._end_line()

    def _end_line(self) -> None:
        if self._out and not self._out[-1].endswith("\n"):
            self._out.append("\n")

    def _keep(self, literal: str) -> None:
        """Write text in which nothing is markup."""
        self._out.append(f"\x00{len(self._kept)}\x00")
        self._kept.append(literal)

    def text(self) -> str:
        """What was written, without the rests of markup."""
        tidy = _tidy("".join(self._out))
        return _KEPT.sub(lambda match: self._kept[int(match[1])], tidy).strip()


def _is_hidden(node: Any) -> bool:
    return any(
        str(a.name).strip() == "style" and "display:none" in str(a.value).replace(" ", "") for a in node.attributes
    )


def _tidy(text: str) -> str:
    text = _QUOTED_LINE.sub(_without_quotes, text)
    text = _CONVERTED.sub(_variant, text)
    text = _MAGIC.sub(lambda match: "" if match[0] == match[0].upper() else match[0], text)
    text = _BROKEN.sub("", _TAG.sub("", text))
    text = _BRACKET_END.sub("", _BRACKET_START.sub(r"\1", _EMPTY_BRACKETS.sub("", text)))
    text = _SPACE_AT_ENDS.sub("\n", _SPACES.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", _with_headings(text))


def _without_quotes(line: re.Match[str]) -> str:
    """Two apostrophes are italics, three bold, five both; of four and of more than five, the rest are letters. If a
    line has an odd number of both, as in ``l'''Iliade''``, one of three begins with a letter: MediaWiki takes the first
    after a word of one letter, else after a longer one, else any."""
    found = list(_APOSTROPHES.finditer(line[0]))
    counts = [min(len(m[0]), 5) if len(m[0]) != 4 else 3 for m in found]
    letters = [len(m[0]) - count for m, count in zip(found, counts, strict=True)]
    if (counts.count(2) + counts.count(5)) % 2 and (counts.count(3) + counts.count(5)) % 2:
        before = [line[0][: m.start()].rpartition(" ")[2] for m in found]
        ranks = {i: {0: 2, 1: 0}.get(len(before[i]), 1) for i, count in enumerate(counts) if count == 3}
        if ranks:
            letters[min(ranks, key=lambda i: (ranks[i], i))] += 1
    left = iter(letters)
    return _APOSTROPHES.sub(lambda _: "'" * next(left), line[0])


def _variant(match: re.Match[str]) -> str:
    """MediaWiki's ``-{flags|zh-hans:...; zh-hant:...}-``: the text of the first variant, nothing of a mere rule."""
    flags, bar, rule = match[1].rpartition("|")
    if bar and set("THD-") & set(flags.upper()):
        return ""
    first = rule.split(";")[0]
    code, colon, words = first.partition(":")
    return words.strip() if colon and _LANGUAGE.fullmatch(code.strip()) else rule


def _with_headings(text: str) -> str:
    """Headings as lines of their own, without those that have nothing below them before the next of their rank."""
    below = 0  # level of the next heading that stays; 0: the page ends; 9: there is text before it
    kept: list[str] = []
    for line in reversed(text.split("\n")):
        if not line.startswith(_HEADING):
            below = 9 if line else below
            kept.append(line)
        elif line[2:].strip() and int(line[1]) < below:
            below = int(line[1])
            kept += ["", line[2:].strip(), ""]
    return "\n".join(reversed(kept))
