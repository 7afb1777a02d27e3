"""How fast do encoders of one vocabulary turn text into ids, and how long does learning a vocabulary take?

Every encoder must give the same ids, or the script refuses. Each round encodes documents that none has seen before, so
that an encoder which remembers words has no more of them than it would have in earnest. Encoders that are no
dependency of ours (fastokens, gigatoken) take part where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import Summary, finish, guarded, interleave, machine, parser, positive, progress, show

from bonsaigpt.data.corpora.document import read_document, whole
from bonsaigpt.data.corpora.files import find
from bonsaigpt.data.tokenizers import BpeTokenizer, open_tokenizer
from bonsaigpt.data.tokenizers.encoders import library_encoder, ranked_encoder
from bonsaigpt.data.tokenizers.presplit import in_pieces
from bonsaigpt.data.tokenizers.vocabulary import read_vocabulary
from bonsaigpt.errors import ConfigError, DataError

_DOCUMENT = 4000
"""Characters of a document."""

Encode = Callable[[str], Any]
EncodeAll = Callable[[list[str]], Sequence[Any]]


def main() -> None:
    """Measure what was asked for and print."""
    arguments = _arguments()
    print(f"{machine(1)}\n")
    if arguments.what == "encode":
        tokenizer = open_tokenizer(arguments.tokenizer)
        if not isinstance(tokenizer, BpeTokenizer):
            raise ConfigError(f"{arguments.tokenizer} is no byte-level BPE: give GPT-2's folder or a tokenizer.json")
        found = {path.name: _encode(arguments, tokenizer, path) for path in _files(arguments.texts)}
        finish({"benchmark": "tokenizer_speed encode", "texts": found})
    else:
        finish({"benchmark": "tokenizer_speed train", "runs": _train(arguments)})


# ------------------------------------------------------------------------------------------------- encoding


def _encode(arguments: Any, tokenizer: BpeTokenizer, path: Path) -> dict[str, Any]:
    """MB/s of each encoder on one file, in turns."""
    text = read_document(path).text
    documents = [text[i : i + _DOCUMENT] for i in range(0, len(text), _DOCUMENT)]
    rounds = [documents[number :: arguments.rounds] for number in range(arguments.rounds)]
    if not rounds[-1]:
        raise DataError(f"{path} is too short for {arguments.rounds} rounds: give more text or fewer --rounds")
    sides = _encoders(tokenizer, arguments.threads)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    tokens = 0
    with progress(path.name, len(rounds)) as advance:
        for number, order in interleave(list(sides), len(rounds)):
            chosen = rounds[number]
            size = sum(len(document.encode()) for document in chosen)
            ids: dict[str, Sequence[Any]] = {}
            for name in order:
                began = time.perf_counter()
                ids[name] = sides[name](chosen)
                rates[name].append(size / (time.perf_counter() - began) / 1e6)
            expected = np.concatenate([np.asarray(row) for row in ids["tiktoken, numpy (ours)"]])
            tokens += len(expected)
            for name, rows in ids.items():
                if not np.array_equal(np.concatenate([np.asarray(row) for row in rows]), expected):
                    raise DataError(f"{name} gives other ids than ours on {path}: its figures would mean nothing")
            advance(number + 1, "")
    base = rates["tokenizers"]
    rows, figures = [], {}
    for name, values in rates.items():
        ratio = Summary.of([mine / theirs for mine, theirs in zip(values, base, strict=True)])
        figures[name] = {"mb_per_second": Summary.of(values).as_dict(), "against_tokenizers": ratio.as_dict()}
        rows.append((name, f"{Summary.of(values).median:.1f}", ratio.text()))
    size = len(text.encode())
    title = f"{path.name}: {size / 1e6:.1f} MB, {size / tokens:.2f} bytes a token, {arguments.threads} threads"
    show(title, ("encoder", "MB/s", "times as fast as tokenizers"), rows)
    print()
    return {"bytes_per_token": size / tokens, "threads": arguments.threads, "encoders": figures}


def _encoders(tokenizer: BpeTokenizer, threads: int) -> dict[str, EncodeAll]:
    """Name to what encodes a list of texts with so many threads."""
    data = json.loads(tokenizer.to_json())["tokenizer"]
    ranked = ranked_encoder(data, read_vocabulary(data, origin="the tokenizer"))
    if ranked is None:
        raise ConfigError("tiktoken cannot encode by this vocabulary, so there is no choice: give another --tokenizer")
    encoding, ids = ranked
    library = library_encoder(data)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)

    def several(encode: Encode) -> EncodeAll:
        return lambda texts: _in_threads(encode, texts, threads)

    sides: dict[str, EncodeAll] = {
        "tokenizers": lambda texts: [e.ids for e in library.encode_batch_fast(texts, add_special_tokens=False)],
        "tiktoken, lists": several(lambda text: ids[np.array(encoding.encode_ordinary(text), dtype=np.int64)]),
        "tiktoken, numpy (ours)": lambda texts: tokenizer.encode_documents(texts, threads=threads),
    }
    # Without their special tokens: text that looks like one is text.
    plain = json.dumps(data | {"added_tokens": []})
    if importlib.util.find_spec("fastokens"):
        fast = importlib.import_module("fastokens").Tokenizer.from_json_str(plain)
        sides["fastokens"] = several(lambda text: np.array(fast.encode(text, False).ids, dtype=np.uint32))
    if importlib.util.find_spec("gigatoken"):
        giga = importlib.import_module("gigatoken").Tokenizer.from_json(plain)
        alone = several(giga.encode)
        # One of it cannot be used in two threads; it has its own.
        sides["gigatoken"] = alone if threads == 1 else lambda texts: [*map(np.asarray, giga.encode_batch(texts))]
    return sides


def _in_threads(encode: Encode, documents: list[str], threads: int) -> Sequence[Any]:
    if threads == 1:
        return [encode(document) for document in documents]
    share = max(1, len(documents) // (4 * threads))
    tasks = [documents[i : i + share] for i in range(0, len(documents), share)]
    with ThreadPoolExecutor(threads) as pool:
        return [ids for done in pool.map(lambda task: [encode(text) for text in task], tasks) for ids in done]


# ------------------------------------------------------------------------------------------------- training


def _train(arguments: Any) -> dict[str, Any]:
    """Seconds and memory of learning a vocabulary, each in a process of its own."""
    files = _files(arguments.texts)
    found: dict[str, Any] = {}
    cells = [(split, number) for number in range(arguments.rounds) for split in ("gpt2", "gpt4")]
    with progress("trainings", len(cells)) as advance:
        for done, (split, _) in enumerate(cells, start=1):
            context = multiprocessing.get_context("spawn")
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_learn, args=(send, files, arguments.vocab, split, arguments.megabytes))
            process.start()
            send.close()
            found.setdefault(split, []).append(receive.recv())
            process.join()
            advance(done, f"{split}: {found[split][-1]['seconds']:.1f} s")
    rows = [
        (
            split,
            *(Summary.of([run[name] for run in runs]).text(1) for name in ("seconds", "cpu_seconds")),
            f"{max(run['memory_mb'] for run in runs):.0f}",
        )
        for split, runs in found.items()
    ]
    title = f"{arguments.vocab:,} tokens from {arguments.megabytes:g} MB of {', '.join(p.name for p in files[:3])}"
    show(title, ("split", "seconds", "CPU seconds", "peak memory, MB"), rows)
    return found


def _learn(send: Any, files: list[Path], vocab: int, split: str, megabytes: float) -> None:
    enough = int(megabytes * 1e6)
    began, used = time.perf_counter(), time.process_time()
    tokenizer = BpeTokenizer.train(_endless(files), vocab, split=split, train_bytes=enough)
    send.send(
        {
            "vocab_size": tokenizer.vocab_size,
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - used,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


def _endless(files: list[Path]) -> Iterator[str]:
    """The files again and again: a text shorter than what is asked for repeats, and so has few distinct words."""
    while True:
        for path in files:
            for part, _ in whole(path, path.name):
                yield from in_pieces(part.text, 1 << 16)


def _files(paths: list[Path]) -> list[Path]:
    return [found for path in paths for found, _ in find(path, "**/*.txt")]


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/tokenizer_speed.py encode english.txt --tokenizer gpt2-bpe")
    flags.add_argument("what", choices=["encode", "train"], help="what is measured")
    flags.add_argument("texts", nargs="+", type=Path, help="UTF-8 files; `train` repeats them until it has enough")
    flags.add_argument(
        "--tokenizer", type=Path, default=Path("gpt2-bpe"), help="encode: GPT-2's folder, or another BPE"
    )
    flags.add_argument("--threads", type=positive, default=1, help="encode: threads of each encoder (default: 1)")
    flags.add_argument("--rounds", type=positive, default=9, help="encode: rounds; train: runs (default: 9)")
    flags.add_argument("--vocab", type=positive, default=8192, help="train: tokens of the vocabulary (default: 8192)")
    flags.add_argument("--megabytes", type=float, default=100.0, help="train: MB to learn from (default: 100)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
