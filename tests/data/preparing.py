"""Preparations in processes of their own, to be killed: forked from one warm parent, so that dozens fit into a test."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonsaigpt.config import FilesData, TextData
from bonsaigpt.data.corpora.source import Cursor, Document, Source, as_it_is

__all__ = ["CONFIG", "KILLED", "corpus_files", "source_of", "start", "texts"]

KILLED = -signal.SIGKILL
CONFIG: dict[str, Any] = {
    "path": "nowhere",
    "tokenizer": {"kind": "bytes"},
    "split": "hash",
    "dedup": True,
    "shard_tokens": 2500,
}
"""Of every run here: several shards in each split, and duplicates to remember."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["bonsaigpt.data.prepare"])


def texts(count: int = 120) -> list[Document]:
    """Documents of which the last are the first once more, and every tenth comes in three parts."""
    found: list[Document] = []
    for i in range(count):
        same = i % 90
        text = f"document {same}: " + "the bonsai grows slowly. " * (same % 13)
        if i % 10 == 3:
            third = len(text) // 3
            parts = [(0, text[:third]), (third, text[third : 2 * third]), (2 * third, text[2 * third :])]
            found += [Document(str(i), part, start, len(text)) for start, part in parts]
        else:
            found.append(Document(str(i), text))
    return found


def source_of(documents: list[Document], *, identity: str = "x", pause: float = 0.0) -> Source:
    """Documents as a source; ``pause`` seconds before each."""

    def stream(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        for number, document in enumerate(documents[start.item :], start.item):
            if pause:
                time.sleep(pause)
            yield document, Cursor(0, number + 1, number + 1)

    return Source("documents", identity, len(documents), stream, as_it_is)


def corpus_files(corpora: Path) -> dict[str, bytes]:
    """The files of the one corpus, with what is in them."""
    [folder] = [p for p in corpora.iterdir() if not p.name.startswith(".")]
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def start(corpora: Path, *, kill: tuple[str, int] | None = None, workers: int = 0, pause: float = 0.0) -> Any:
    """Prepare ``texts()`` below ``corpora``, with a commit after each small piece; killed right before that call."""
    process = _context.Process(target=_child, args=(str(corpora), kill, workers, pause))
    process.start()
    return process


def _child(corpora: str, kill: tuple[str, int] | None, workers: int, pause: float) -> None:
    import bonsaigpt.data.growing
    import bonsaigpt.data.hashes
    import bonsaigpt.data.pieces
    from bonsaigpt.data.prepare import prepare_source

    bonsaigpt.data.growing._COMMIT_SECONDS = 0.0
    bonsaigpt.data.pieces._PIECE = 2000
    bonsaigpt.data.hashes._SETTLED = 1e9  # whether a hash is kept must not depend on how fast this machine is
    config: TextData = FilesData.model_validate(CONFIG)
    if kill is not None:
        _before(*kill)
    os.makedirs(Path(corpora).parent, exist_ok=True)
    os.chdir(Path(corpora).parent)
    prepare_source(config, source_of(texts(), pause=pause), Path(corpora), workers=workers, say=_log)


def _log(line: str) -> None:
    with Path("said.txt").open("a") as file:
        file.write(line + "\n")


def _before(name: str, at: int) -> None:
    """Die right before that call of a function of ``os``; call 0 counts them into a file ``calls`` instead."""
    function = getattr(os, name)
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if at == 0:
            Path("calls").write_text(str(calls))
        elif calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(os, name, wrapped)
