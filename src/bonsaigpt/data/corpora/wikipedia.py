"""Source `wikipedia`: an official dump (pages-articles, XML) read as a stream, or the hub's prepared text.

The dump holds all pages with their markup. Reading it gives the markup of each article; ``clean`` (``markup.py``) makes
text of it, in other processes, since that is nearly all of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.parsers import expat

from bonsaigpt.config import WikipediaData
from bonsaigpt.data.corpora.compressed import open_bytes
from bonsaigpt.data.corpora.document import in_parts
from bonsaigpt.data.corpora.files import find, over_files
from bonsaigpt.data.corpora.hub import open_hub
from bonsaigpt.data.corpora.markup import FORMAT, CleanArticle
from bonsaigpt.data.corpora.source import Document, Source
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance

__all__ = ["hidden_prefixes", "open_wikipedia"]

_BLOCK = 1 << 18
_DUMP = "a ...-pages-articles.xml.bz2 from https://dumps.wikimedia.org"
_FILE, _CATEGORY = "6", "14"
_HIDDEN = ("file", "image", "category")
"""Names that every Wikipedia knows besides its own."""
_WANTED = frozenset({"title", "ns", "model", "text"})


def open_wikipedia(config: WikipediaData, *, hashes: FileHashes, download: bool, advance: Advance) -> Source:
    """The articles of a dump: pages of namespace 0 that are no redirects, title first."""
    if config.path is None:
        return open_hub(config, hashes=hashes, download=download, advance=advance)
    found = find(config.path, "**/*.xml, **/*.xml.*", f"give a dump as --data.path: {_DUMP}")
    return over_files(
        str(config.path),
        found,
        [_articles] * len(found),
        settings=["wikipedia", FORMAT, config.min_characters],
        hashes=hashes,
        advance=advance,
        clean=CleanArticle(hidden_prefixes(found[0][0]), config.min_characters),
    )


def hidden_prefixes(path: Path) -> frozenset[str]:
    """What links to files and categories begin with in this dump's language, in lower case."""
    dump = _Dump()
    for _ in _parsed(path, dump):
        if dump.has_site:
            break
    return frozenset({*_HIDDEN, *(name.lower() for name in dump.hidden)})


def _articles(path: Path, name: str) -> Iterator[tuple[Document, int]]:
    """Title and markup of each article."""
    dump = _Dump()
    for taken in _parsed(path, dump):
        articles, dump.articles = dump.articles, []
        for title, markup in articles:
            for document in in_parts(f"{name}: {title}", f"{title}\n{markup}"):
                yield document, taken


def _parsed(path: Path, dump: _Dump) -> Iterator[int]:
    """Feed a dump block by block; the bytes read by then."""
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.buffer_size = 1 << 16
    parser.StartElementHandler = partial(dump.start, parser)
    parser.EndElementHandler = partial(dump.end, parser)
    with open_bytes(path) as (file, taken):
        try:
            while block := file.read(_BLOCK):
                parser.Parse(block, False)
                yield taken()
            parser.Parse(b"", True)
        except DataError as error:
            raise DataError(f"{error} The last whole page was {dump.last}.") from None
        except expat.ExpatError as error:
            what = expat.ErrorString(error.code)
            if dump.is_dump and error.code in _ENDED and not file.peek(1):
                raise DataError(
                    f"{path} is cut short: it ends at byte {taken()} inside the dump; the last whole page was "
                    f"{dump.last}. Fetch it again."
                ) from None
            where = f"{what} in line {error.lineno}, column {error.offset}"
            if not dump.is_dump:
                raise DataError(f"{path} is no dump of a MediaWiki ({where}): give {_DUMP}.") from None
            raise DataError(
                f"{path} is damaged: {where}, of its XML, after page {dump.last}. Fetch it again."
            ) from None
        yield taken()
    if not dump.is_dump:
        raise DataError(f"{path} is XML, but no dump of a MediaWiki: give {_DUMP}.")


_ENDED = frozenset(
    expat.errors.codes[words]
    for words in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
        expat.errors.XML_ERROR_ASYNC_ENTITY,
    )
)


@dataclass
class _Dump:
    """What the parser has found and nobody has taken yet. Only the elements we want cost Python anything."""

    articles: list[tuple[str, str]] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    """Names of the namespaces of files and categories."""
    is_dump: bool = False
    has_site: bool = False
    """Whether the description of the site is over, so that ``hidden`` is complete."""
    last: str = "none"
    """Title of the last whole page, for messages."""
    _page: dict[str, str] = field(default_factory=dict)
    _text: list[str] = field(default_factory=list)

    def start(self, parser: expat.XMLParserType, name: str, attributes: dict[str, str]) -> None:
        if name in _WANTED or (name == "namespace" and attributes.get("key") in (_FILE, _CATEGORY)):
            self._text = []
            parser.CharacterDataHandler = self._text.append
        elif name == "page":
            self._page = {}
        elif name == "redirect":
            self._page["redirect"] = ""
        elif name == "mediawiki":
            self.is_dump = True

    def end(self, parser: expat.XMLParserType, name: str) -> None:
        if name in _WANTED:
            self._page[name] = "".join(self._text)
            parser.CharacterDataHandler = None
        elif name == "page":
            self._end_page()
        elif name == "namespace" and parser.CharacterDataHandler is not None:
            self.hidden.append("".join(self._text))
            parser.CharacterDataHandler = None
        elif name == "siteinfo":
            self.has_site = True

    def _end_page(self) -> None:
        page = self._page
        self.last = repr(page.get("title", ""))
        is_article = page.get("ns") == "0" and "redirect" not in page and page.get("model", "wikitext") == "wikitext"
        if is_article and page.get("text"):
            self.articles.append((page["title"], page["text"]))
