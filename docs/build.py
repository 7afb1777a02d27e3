"""A hook of mkdocs: a menu of all pages, and those that lie beside ``docs/`` and not in it, with links to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"../benchmarks/README.md": "benchmarks.md"}
"""What pages link to, as they lie in the repository, and the page of the site."""


def on_config(config: Any) -> Any:
    """A page that nobody put into the menu yet stands at its end."""
    listed: set[str] = set()
    for entry in config.nav:
        listed.update(*entry.values()) if isinstance(entry, dict) else listed.add(entry)
    more = sorted(file.name for file in (ROOT / "docs").glob("*.md") if file.name not in listed)
    config.nav = [*config.nav, *([{"More": more}] if more else [])]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages."""
    for there, here in BESIDE.items():
        text = (ROOT / "docs" / there).read_text(encoding="utf-8").replace("](../docs/", "](")
        files.append(File.generated(config, here, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links lead to them."""
    for there, here in BESIDE.items():
        markdown = markdown.replace(f"]({there}", f"]({here}")
    return markdown
