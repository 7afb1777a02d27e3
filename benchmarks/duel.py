"""Two sides on the same tokens, each in a process of its own, checked to be the same model before anything is timed.

Own processes, so that neither inherits what the other does to its process (memory allocator, thread pool). Only one
works at a time: the parent waits for its answer before it asks the other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from sides import Decisions, NanoGPT, Ours, Setup, Side

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import RunConfig, TextData, derive
from bonsaigpt.data.corpora import documents
from bonsaigpt.data.prepare import open_source
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import BonsaiError, DataError

__all__ = ["SIDES", "Remote", "add_flags", "duel", "text_overrides", "write_bins"]

SIDES = ("ours", "nanogpt")


@contextmanager
def duel(
    config: RunConfig, folder: Path, *, nanogpt: Path, threads: int, compile: bool = False
) -> Iterator[tuple[RunConfig, dict[str, Remote]]]:
    """Both sides ready to train, and the configuration with its vocabulary. ``folder`` takes the tokens.

    Raises:
        DataError: the sides differ in their tokens, their number of parameters, their loss or their gradient.
    """
    source = open_source(config, folder)
    assert isinstance(source, TokenBatches)
    if config.model.vocab_size is None:
        config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    write_bins(config, folder, source)
    setup = Setup(config=config, folder=folder, nanogpt=nanogpt, threads=threads, compile=compile)
    sides: dict[str, Remote] = {}
    try:
        for name in SIDES:
            sides[name] = Remote(name, setup)
        counts = {name: side.parameters() for name, side in sides.items()}
        if len(set(counts.values())) != 1:
            raise DataError(f"the models differ in their number of parameters, {counts}: nothing to compare")
        batch, values = source.batch_at(0), sides["ours"].weights()
        first, second = (side.gradient(values, batch.tokens_BT, batch.targets_BT) for side in sides.values())
        # bfloat16 has 8 bits: products of both sides agree to a few thousandths, not to the last digits.
        if not np.allclose(first, second, rtol=1e-5 if config.train.precision == "fp32" else 2e-2, atol=0):
            raise DataError(f"the same weights give (loss, gradient norm) {first} and {second}: nothing to compare")
        yield config, sides
    finally:
        for side in sides.values():
            side.close()


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add --nanogpt, --text and --threads."""
    flags.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="a checkout of nanoGPT")
    flags.add_argument(
        "--text", type=Path, metavar="FILE", help="text to train on (default: tinyshakespeare.txt in this folder)"
    )
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses (default: 0)")


def text_overrides(text: Path | None) -> dict[str, Any]:
    """Settings that make recipe `shakespeare-char` read a file, split as nanoGPT splits it."""
    if text is None:
        return {}
    return {"data": {"kind": "files", "path": str(text), "split": "tail"}}


class Remote:
    """A side in a process of its own."""

    def __init__(self, name: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setup), daemon=True)
        self._process.start()
        theirs.close()  # or the pipe would stay open when the process dies
        self._answer()

    def parameters(self) -> int:
        return self._ask("parameters")

    def gradient(self, values: Arrays, tokens_BT: np.ndarray, targets_BT: np.ndarray) -> tuple[float, float]:
        return self._ask("gradient", values, tokens_BT, targets_BT)

    def start(self) -> float:
        return self._ask("start")

    def advance(self, steps: int) -> float:
        return self._ask("advance", steps)

    def weights(self) -> Arrays:
        return self._ask("weights")

    def decisions(self) -> Decisions:
        return self._ask("decisions")

    def memory(self) -> float:
        """Peak memory so far in 2^20 bytes: of the device on a GPU, else of the process."""
        return self._ask("memory")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _ask(self, method: str, *arguments: object) -> Any:
        self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            error, value = self._pipe.recv()
        except EOFError:
            raise BonsaiError("a benchmark process was killed (out of memory?): free some memory") from None
        if error:
            raise BonsaiError(f"a benchmark process failed:\n{error}")
        return value


def _serve(pipe: Connection, name: str, setup: Setup) -> None:
    """The child: make the side, then answer one question after the other."""
    try:
        side: Side = Ours(setup) if name == "ours" else NanoGPT(setup)
        pipe.send((None, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((None, getattr(side, method)(*arguments)))
    except (EOFError, KeyboardInterrupt):
        return  # the parent is gone, or was interrupted and says so itself
    except Exception:
        pipe.send((traceback.format_exc(), None))


def write_bins(config: RunConfig, folder: Path, source: TokenBatches) -> None:
    """train.bin and val.bin as nanoGPT's prepare.py makes them, and a check that ours are the same tokens."""
    assert isinstance(config.data, TextData)
    text = "".join(document.text for document in documents(config.data))
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    ids = np.unique(codes, return_inverse=True)[1].astype(np.uint16)  # ids in the order of the code points
    cut = int(len(ids) * 0.9)
    for name, theirs, ours in (("train", ids[:cut], source.train), ("val", ids[cut:], source.val)):
        if not np.array_equal(theirs, ours.read(0, len(ours))):
            raise DataError(f"the {name} tokens differ: give one text file that has line breaks, --text FILE")
        theirs.tofile(folder / f"{name}.bin")
