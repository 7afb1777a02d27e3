"""How long work tells of itself: a line for each stage, and how far it is. Whoever called decides what is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

__all__ = ["Advance", "Say", "hushed", "silent"]

Say = Callable[[str], None]
"""Receives one line per stage."""
Advance = Callable[..., None]
"""``advance(what, done, total, note)``; total 0 means that nobody knows; the note, which may be left out, is speed."""

hushed: ContextVar[bool] = ContextVar("hushed", default=False)
"""Whether whoever called wants to see nothing of it, on any stream."""


def silent(*_: object) -> None:
    """Nobody listens; a ``Say`` or an ``Advance``."""
