"""A small dump of a Wikipedia, made here: the form of the official ones, with what makes real pages hard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Page", "dump"]


@dataclass(frozen=True)
class Page:
    """A page of a dump."""

    title: str
    markup: str
    namespace: int = 0
    redirect: str | None = None
    model: str = "wikitext"


def dump(pages: Iterable[Page], *, file: str = "File", category: str = "Category", language: str = "en") -> bytes:
    """The XML of a dump, export format 0.11."""
    body = "".join(_page(number, page) for number, page in enumerate(pages, start=1))
    return f"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{language}wiki</dbname>
    <case>first-letter</case>
    <namespaces>
      <namespace key="-2" case="first-letter">Media</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
      <namespace key="6" case="first-letter">{file}</namespace>
      <namespace key="10" case="first-letter">Template</namespace>
      <namespace key="14" case="first-letter">{category}</namespace>
    </namespaces>
  </siteinfo>
{body}</mediawiki>
""".encode()


def _page(number: int, page: Page) -> str:
    redirect = "" if page.redirect is None else f'    <redirect title="{escape(page.redirect)}" />\n'
    markup = escape(page.markup)
    return f"""  <page>
    <title>{escape(page.title)}</title>
    <ns>{page.namespace}</ns>
    <id>{number}</id>
{redirect}    <revision>
      <id>{number + 1000}</id>
      <timestamp>2024-01-01T00:00:00Z</timestamp>
      <contributor>
        <username>Somebody</username>
        <id>7</id>
      </contributor>
      <comment>/* title */ text ns</comment>
      <model>{page.model}</model>
      <format>text/x-wiki</format>
      <text bytes="{len(page.markup.encode())}" xml:space="preserve">{markup}</text>
      <sha1>x</sha1>
    </revision>
  </page>
"""
