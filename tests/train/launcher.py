"""Starts `bonsai` in processes that are forked from one warm parent, which has imported torch and nothing else.

A new interpreter needs seconds to import torch; a fork of the parent needs milliseconds, so that hundreds of kills fit
into a test. The parent never computes anything, hence there are no threads that a fork could lose.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["KILLED", "Kill", "start"]

KILLED = -signal.SIGKILL
Kill = tuple[str, int]
"""Where to die: the dotted name of a function, and at which of its calls (the first is 1), before it does anything."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch._dynamo", "bonsaigpt.cli.train", "bonsaigpt.torch_engine.engine"])


def start(folder: Path, argv: list[str], kill: Kill | None = None) -> tuple[Any, Any]:
    """`bonsai ARGV` in ``folder``: the process, and an event that is set when its training begins."""
    began = _context.Event()
    process = _context.Process(target=_child, args=(str(folder), argv, kill, began))
    process.start()
    return process, began


def run(folder: Path, argv: list[str], kill: Kill | None = None) -> int:
    """`bonsai ARGV` in ``folder`` until it ends: its exit code."""
    process, _ = start(folder, argv, kill)
    process.join(timeout=60)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"bonsai {argv} hangs")
    return process.exitcode


def _child(folder: str, argv: list[str], kill: Kill | None, began: Any) -> None:
    import bonsaigpt.cli.train
    from bonsaigpt.cli import main

    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    train = bonsaigpt.cli.train.train

    def announced(*arguments: Any, **named: Any) -> Any:
        began.set()
        return train(*arguments, **named)

    bonsaigpt.cli.train.train = announced
    bonsaigpt.cli.train._write_report = lambda *_: None  # the weights are safe by then; it has tests of its own
    if kill is not None:
        name, at = kill
        owner, _, attribute = name.rpartition(".")
        module = __import__(owner, fromlist=["_"])
        setattr(module, attribute, _fatal(getattr(module, attribute), at))
    raise SystemExit(main(argv))


def _fatal(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    calls = 0

    def fatal(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return fatal
