"""What reading costs: a batch against a step, files against a memory map, a huge stream, packing, and document masks.

Needs nothing but this package: the text is the Python standard library's own source.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show

from bonsaigpt import recipes
from bonsaigpt.config import derive
from bonsaigpt.data.batches import Batch
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.prepare import open_source
from bonsaigpt.data.stream import FileShard, ImaginaryShard, TokenStream
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.engines import load_engine

_SMALL = {"model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, "train": {"batch_size": 12}}
"""The small CPU configuration: nanoGPT's recipe for Tiny Shakespeare."""


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    figures: dict[str, Any] = {"benchmark": "reading", "machine": machine(arguments.threads)}
    print(f"{figures['machine']}\n")
    with tempfile.TemporaryDirectory() as folder:
        figures["step"] = _step(arguments, Path(folder))
        figures["map"] = _map(arguments, Path(folder))
        figures["huge"] = _huge(arguments)
        figures["masks"] = _masks(arguments, Path(folder))
    finish(figures)


def _seconds(work: Callable[[int], object], count: int) -> Summary:
    """Of each of ``count`` calls."""
    found: list[float] = []
    for number in range(count):
        began = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - began)
    return Summary.of(found)


def _step(arguments: Any, folder: Path) -> dict[str, Any]:
    """Reading a batch and taking a step with it, in turns."""
    asked = recipes.merge({"data": {"kind": "stdlib", "tokenizer": {"kind": "bytes"}}}, _SMALL)
    config = recipes.load("shakespeare-char", asked)
    source = open_source(config, folder)
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    engine = load_engine("torch", device="cpu", precision="fp32", threads=arguments.threads)
    state, reading, stepping = engine.init(config), [], []
    with progress("steps", arguments.steps) as advance:
        for step in range(arguments.steps):
            began = time.perf_counter()
            batch = source.batch_at(step)
            read = time.perf_counter()
            engine.step(state, batch, config=config, share=0.0, step=step).host()
            reading.append(read - began)
            stepping.append(time.perf_counter() - read)
            advance(step + 1, "")
    share = median(reading) / median(stepping)
    rows = [
        ("reading a batch, us", f"{1e6 * median(reading):.1f}"),
        ("a step, ms", f"{1e3 * median(stepping):.2f}"),
        ("share", f"{share:.2%}"),
    ]
    show("12 rows of 64, 0.8 M parameters", ("", "figure"), rows)
    print()
    return {"read": Summary.of(reading).as_dict(), "step": Summary.of(stepping).as_dict(), "share": share}


def _map(arguments: Any, folder: Path) -> list[dict[str, Any]]:
    """Windows from all over one large file, by three ways to read; memory that is left behind (Linux)."""
    path, tokens = folder / "large.bin", arguments.megabytes * 500_000
    with path.open("wb") as file:
        for part in range(100):
            file.write(np.random.default_rng(part).integers(0, 50_000, tokens // 100, dtype=np.uint16).tobytes())
    stream = TokenStream([FileShard(path, tokens)], np.uint16, limit=50_257)
    mapped = np.memmap(path, dtype=np.uint16, mode="r")

    def windows(array: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        return array[starts[:, None] + np.arange(length)].astype(np.int64)

    ways: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "files (ours)": stream.gather,
        "a map anew each batch (nanoGPT)": lambda s, n: windows(np.memmap(path, dtype=np.uint16, mode="r"), s, n),
        "one map": lambda s, n: windows(mapped, s, n),
    }
    found: list[dict[str, Any]] = []
    for rows, length in ((12, 65), (64, 257), (8, 1025)):
        times: dict[str, list[float]] = {name: [] for name in ways}
        grown = dict.fromkeys(ways, 0.0)
        draws = np.random.default_rng(rows)
        for _, order in interleave(list(ways), 20):
            for name in order:
                before = _resident()
                starts = draws.integers(0, tokens - length, (50, rows))
                times[name].append(_seconds(lambda i, s=starts, w=ways[name], n=length: w(s[i], n), 50).median)
                grown[name] += _resident() - before
        for name in ways:
            entry = {"rows": rows, "length": length, "way": name, "seconds": median(times[name])}
            found.append(entry | {"grown_mb": round(grown[name], 1)})
    table = [(f"{f['rows']} x {f['length']}", f["way"], f"{1e6 * f['seconds']:.1f}", f["grown_mb"]) for f in found]
    show(f"windows of a file of {arguments.megabytes} MB", ("", "way", "us a batch", "memory grown, MB"), table)
    print()
    return found


def _resident() -> float:
    """Megabytes of this process in memory; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 / 1e6 if status.exists() else 0.0


def _huge(arguments: Any) -> dict[str, Any]:
    """10^12 imaginary tokens in 1,000 shards: a batch at a random step."""
    size = 10**9
    shards = [ImaginaryShard(size, lambda places: places % 50_257) for _ in range(1000)]
    draws, found, rows = np.random.default_rng(1), {}, []
    for order in ("shuffled", "random", "streams"):
        source = TokenBatches(
            train=TokenStream(shards, np.uint16, limit=50_257),
            val=TokenStream.of(np.arange(2000)),
            tokenizer=ByteTokenizer(),
            order=order,
            seed=1,
            plan=BatchPlan(batch_size=12, block_size=1024),
            fingerprint="huge",
        )
        steps = draws.integers(0, 10**8, arguments.steps).tolist()
        found[order] = _seconds(lambda i, s=steps, of=source: of.batch_at(s[i]), len(steps))
        rows.append((order, f"{1e6 * found[order].median:.0f}", f"{1e6 * found[order].quartile_3:.0f}"))
    show("12 x 1,024 of 10^12 tokens, a random step", ("order", "us, median", "upper quartile"), rows)
    print()
    return {order: summary.as_dict() for order, summary in found.items()}


def _masks(arguments: Any, folder: Path) -> dict[str, Any]:
    """A step with and without document masks, in turns, and what packing costs."""
    found: dict[str, Any] = {}
    rows = []
    for block in (64, 256, 1024):
        config = recipes.load(
            "shakespeare-char",
            {"model": {"block_size": block}, "train": {"batch_size": max(1, 3072 // block)}}
            | {"data": {"kind": "stdlib", "tokenizer": {"kind": "bytes"}, "document_mask": True, "order": "packed"}},
        )
        source = open_source(config, folder)
        assert isinstance(source, TokenBatches)
        config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
        engine = load_engine("torch", device="cpu", precision="fp32", threads=arguments.threads)
        state, times = engine.init(config), {"mask": [], "none": []}
        reading = _seconds(source.batch_at, 20).median
        for number, order in interleave(list(times), arguments.rounds + 1):
            for name in order:
                batch = source.batch_at(number)
                batch = batch if name == "mask" else Batch(**{**vars(batch), "documents_BT": None})
                began = time.perf_counter()
                engine.step(state, batch, config=config, share=0.0, step=number).host()
                if number:  # the first one warms up
                    times[name].append(time.perf_counter() - began)
        ratio = Summary.of([m / n for m, n in zip(times["mask"], times["none"], strict=True)])
        epoch = source.windows * block
        padding = 1 - (len(source.train) - 1) / epoch
        found[str(block)] = {"ratio": ratio.as_dict(), "padding": padding, "read": reading}
        rows.append((block, f"{1e6 * reading:.0f}", f"{padding:.2%}", ratio.text()))
    columns = ("block", "us to read a packed batch", "padding", "step with mask / without")
    show("3,072 tokens a step, the standard library in bytes", columns, rows)
    print()
    return found


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/reading.py --threads 2")
    flags.add_argument("--steps", type=positive, default=300, help="steps and batches that are timed (default: 300)")
    flags.add_argument("--rounds", type=positive, default=10, help="rounds with and without mask (default: 10)")
    flags.add_argument("--megabytes", type=positive, default=500, help="size of the large file, MB (default: 500)")
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses (default: 0)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
