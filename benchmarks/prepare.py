"""Preparation of English text into GPT-2 tokens: ours against nanoGPT's way, in alternating rounds.

nanoGPT's way is that of its data/openwebtext/prepare.py: `datasets.map` with tiktoken's `encode_ordinary` in a few
processes, then a memory-mapped file written in batches. Both sides read the same JSON lines and must end in the same
number of tokens.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show

from bonsaigpt.errors import DataError

SIDES = ("ours", "nanogpt")
_LABELS = {"articles": 10**9, "pages": 3000}
"""Kinds of documents: whole articles of WikiText (19 kB on average), or pieces of 3 kB, as pages of OpenWebText are."""


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for label in arguments.documents:
            results[label] = _compare(label, arguments, Path(scratch))
    where = machine()
    print(
        f"{where}\n{arguments.workers} processes, {arguments.megabytes} MB of English, the WikiText pieces repeated\n"
    )
    for label, result in results.items():
        rows = [
            (number + 1, *(f"{result['mb_per_second'][side][number]:.2f}" for side in SIDES), f"{ratio:.2f}")
            for number, ratio in enumerate(result["ratio_per_round"])
        ]
        title = f"{label}: {result['documents']:,} documents, {result['tokens']:,} tokens; MB/s"
        show(title, ("round", "ours", "nanoGPT's way", "ratio"), rows)
        print(f"ours / nanoGPT's way: {Summary.of(result['ratio_per_round']).text()}")
        print(f"with its loading of the text into Arrow: {Summary.of(result['ratio_with_loading']).text()}")
        memory = {side: max(result["memory_mb"][side]) for side in SIDES}
        cpu = {side: Summary.of(result["cpu_seconds"][side]).median for side in SIDES}
        print(f"CPU seconds: ours {cpu['ours']:.1f}, nanoGPT's way {cpu['nanogpt']:.1f}")
        print(f"peak memory of all processes: ours {memory['ours']:.0f} MB, nanoGPT's way {memory['nanogpt']:.0f} MB\n")
    finish({"benchmark": "prepare", "machine": where, "workers": arguments.workers, "results": results})


def _compare(label: str, arguments: Any, scratch: Path) -> dict[str, Any]:
    text = scratch / f"{label}.jsonl"
    documents, size = _write_text(text, arguments.wikitext, arguments.megabytes * 10**6, _LABELS[label])
    lists: dict[str, dict[str, list[float]]] = {
        key: {side: [] for side in SIDES} for key in ("seconds", "loading", "memory_mb", "cpu_seconds")
    }
    tokens: dict[str, int] = {}
    with progress(f"{label}, rounds", arguments.rounds) as advance:
        for number, order in interleave(SIDES, arguments.rounds):
            for side in order:
                result = _run(side, text, scratch / "out", arguments)
                tokens[side] = result["tokens"]
                for key, values in lists.items():
                    values[side].append(result[key])
            if tokens["ours"] + 2 != tokens["nanogpt"]:  # it ends each document, we separate them: one less a split
                raise DataError(f"the sides disagree: {tokens} tokens, where ours must be 2 fewer. Mend one of them.")
            advance(number + 1, f"{lists['seconds']['nanogpt'][-1] / lists['seconds']['ours'][-1]:.2f}x")
    pairs = list(zip(lists["seconds"]["ours"], lists["seconds"]["nanogpt"], lists["loading"]["nanogpt"], strict=True))
    return {
        "documents": documents,
        "bytes": size,
        "tokens": tokens["ours"],
        "mb_per_second": {side: [size / s / 1e6 for s in lists["seconds"][side]] for side in SIDES},
        "ratio_per_round": [theirs / ours for ours, theirs, _ in pairs],
        "ratio_with_loading": [(theirs + loading) / ours for ours, theirs, loading in pairs],
        "memory_mb": lists["memory_mb"],
        "cpu_seconds": lists["cpu_seconds"],
    }


def _write_text(path: Path, wikitext: Path, size: int, longest: int) -> tuple[int, int]:
    """JSON lines of whole articles, or of pieces of them that end with a line; how many, and bytes of text."""
    raw = "".join((wikitext / name).read_text(encoding="utf-8") for name in ("test.txt", "valid.txt"))
    documents: list[str] = []
    for article in re.split(r"(?m)^(?= = [^=])", raw):
        piece = ""
        for line in article.splitlines(keepends=True):
            if piece and len(piece) + len(line) > longest:
                documents.append(piece)
                piece = ""
            piece += line
        if piece.strip():
            documents.append(piece)
    written = count = 0
    with path.open("w", encoding="utf-8") as out:
        while written < size:
            text = documents[count % len(documents)]
            out.write(json.dumps({"text": text}) + "\n")
            written += len(text.encode())
            count += 1
    return count, written


# ---------------------------------------------------------------------------------------------- one side, once


def _run(side: str, text: Path, out: Path, arguments: Any) -> dict[str, Any]:
    """A side in a process of its own, with the peak of the memory of all its processes."""
    script = Path(__file__).with_name("prepare_sides.py")
    command = [sys.executable, *map(str, (script, side, text, out, arguments.tokenizer, arguments.workers))]
    subprocess.run(["rm", "-rf", str(out)], check=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
    watcher.start()
    answer, errors = process.communicate()
    watcher.join()
    if process.returncode:
        raise DataError(f"{side} failed: {errors.strip().splitlines()[-1] if errors.strip() else 'no word'}")
    return json.loads(answer.splitlines()[-1]) | {"memory_mb": peak[0]}


def _watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    """Proportional set size of the whole tree: shared pages count once."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_memory(p) for p in _tree(process.pid)) / 1e3)
        time.sleep(0.05)


def _tree(root: int) -> list[int]:
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    except OSError:
        return []
    return [root, *(p for child in children for p in _tree(int(child)))]


def _memory(process: int) -> float:
    """kB."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _arguments() -> Any:
    about = "MB/s and memory of preparing English text into GPT-2 tokens, against nanoGPT's way."
    flags = parser(about, "python benchmarks/prepare.py --wikitext ../shared/data/wikitext2 --tokenizer gpt2-bpe/")
    flags.add_argument("--wikitext", type=Path, required=True, help="folder with WikiText-2's test.txt and valid.txt")
    flags.add_argument("--tokenizer", type=Path, required=True, help="folder with GPT-2's encoder.json and vocab.bpe")
    flags.add_argument("--megabytes", type=positive, default=100, help="text, in 10^6 bytes (default: 100)")
    flags.add_argument("--workers", type=positive, default=2, help="processes of each side (default: 2)")
    flags.add_argument("--rounds", type=positive, default=5, help="of each side (default: 5)")
    flags.add_argument(
        "--documents", nargs="+", choices=list(_LABELS), default=list(_LABELS), help="kinds of documents"
    )
    flags.add_argument("--scratch", type=Path, help="where the text and both results are written for the time being")
    return flags.parse_args()


if __name__ == "__main__":
    sys.exit(guarded(main))
