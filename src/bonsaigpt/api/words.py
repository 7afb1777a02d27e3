"""Arguments of Python as words of the command line, and what the verbs say and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from bonsaigpt.progress import hushed

__all__ = ["Settings", "commas", "flags", "leave_if_stopped", "setting_flags", "shown", "word"]

Settings = Mapping[str, Any]
"""``{"model.n_layer": 4}``: a setting as the flag ``--model.n_layer 4``."""


@contextmanager
def shown(quiet: bool) -> Iterator[None]:
    """What verbs print is seen, or not: their words, and the bars and whispers that they leave to standard error. What
    went wrong is always said."""
    with redirect_stdout(StringIO()) if quiet else nullcontext():
        before = hushed.set(quiet)
        try:
            yield
        finally:
            hushed.reset(before)


def leave_if_stopped(code: int, words: str) -> None:
    """A script must not go on with half a model because the training ended well after a signal.

    Args:
        words: what is left, and how to go on with it.
    """
    if code == 130:
        raise KeyboardInterrupt(words)
    if code:
        raise SystemExit(code)


def flags(**values: Any) -> list[str]:
    """``block_size=256`` as ``--block-size=256``; None and False are not given, of several values each one is."""
    words: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"{flag}={one}" for one in value]
        elif value is not None and value is not False:
            words.append(f"{flag}={value}")
    return words


def setting_flags(settings: Settings | None, steps: int | None = None) -> list[str]:
    """Settings as flags; ``steps`` is short for ``train.steps``."""
    asked = {**(settings or {}), **({} if steps is None else {"train.steps": steps})}
    return [f"--{name}={word(value)}" for name, value in asked.items()]


def word(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, str | Path):
        return str(value)
    return "unset" if value is None else json.dumps(value)


def commas(values: Sequence[Any] | str | None) -> str | None:
    """Several values as one word; a word stays as it is."""
    return values if values is None or isinstance(values, str) else ",".join(map(str, values))
