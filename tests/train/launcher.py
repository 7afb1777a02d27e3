"""Starts `bonsai` in processes that are forked from one warm parent, which has imported torch and nothing else.

A new interpreter needs seconds to import torch; a fork of the parent needs milliseconds, so that hundreds of kills fit
into a test. The parent never computes anything, hence there are no threads that a fork could lose.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["KILLED", "Call", "run", "start"]

KILLED = -signal.SIGKILL
Call = tuple[str, int]
"""The dotted name of a function, and which of its calls is meant; the first is 1."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "bonsaigpt.cli.train",
        "bonsaigpt.torch_engine.engine",
        "bonsaigpt.torch_engine.shard_files",
    ]
)


def start(
    folder: Path,
    argv: list[str],
    kill: Call | None = None,
    *,
    hang: Call | None = None,
    environment: dict[str, str] | None = None,
    patch: str = "",
) -> tuple[Any, Any]:
    """`bonsai ARGV` in ``folder``: the process, and an event that is set when its training begins, or when it hangs.

    What it prints is appended to ``output.txt``, its errors to ``errors.txt``. The code ``patch`` runs before.
    """
    began = _context.Event()
    process = _context.Process(target=_child, args=(str(folder), argv, kill, hang, began, environment or {}, patch))
    process.start()
    return process, began


def run(folder: Path, argv: list[str], kill: Call | None = None) -> int:
    """`bonsai ARGV` in ``folder`` until it ends, or is killed right before a call: its exit code."""
    process, _ = start(folder, argv, kill)
    process.join(timeout=60)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"bonsai {argv} hangs")
    return process.exitcode


def _child(
    folder: str,
    argv: list[str],
    kill: Call | None,
    hang: Call | None,
    began: Any,
    environment: dict[str, str],
    patch: str,
) -> None:
    import bonsaigpt.cli.train
    from bonsaigpt.cli import main

    os.chdir(folder)
    os.environ.update(environment)
    for descriptor, name in ((1, "output.txt"), (2, "errors.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    bonsaigpt.cli.train._write_report = lambda *_: None  # the weights are safe by then; it has tests of its own

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep() -> None:
        began.set()
        time.sleep(60)

    for call, what in ((kill, die), (hang, sleep), (None if hang else ("bonsaigpt.cli.train.train", 1), began.set)):
        if call is not None:
            _before(call, what)
    exec(patch, {})
    raise SystemExit(main(argv))


def _before(call: Call, what: Callable[[], None]) -> None:
    """Do ``what`` right before that call."""
    name, at = call
    owner, _, attribute = name.rpartition(".")
    module = __import__(owner, fromlist=["_"])
    function = getattr(module, attribute)
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            what()
        return function(*arguments, **named)

    setattr(module, attribute, wrapped)
