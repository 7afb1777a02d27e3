"""The two sides of `prepare.py`, each called once in a process of its own: SIDE TEXT OUT TOKENIZER WORKERS.

This file imports little, because worker processes import it as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonsaigpt.config import FilesData
from bonsaigpt.data.corpora.source import Cursor, Document, Source, as_it_is
from bonsaigpt.data.prepare import prepare_source


def _result(tokens: int, seconds: float, loading: float = 0.0) -> dict[str, Any]:
    times = os.times()
    cpu = times.user + times.system + times.children_user + times.children_system
    return {"tokens": tokens, "seconds": seconds, "loading": loading, "cpu_seconds": cpu}


def _ours(text: Path, out: Path, tokenizer: Path, workers: int) -> dict[str, Any]:
    """From the file to verified shards; hashing of the source, of documents and of shards included."""

    def stream(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        read = 0
        with text.open("rb") as file:
            for number, line in enumerate(file):
                read += len(line)
                if number >= start.item:
                    yield Document(f"line {number + 1}", json.loads(line)["text"]), Cursor(0, number + 1, read)

    config = FilesData.model_validate(
        {
            "path": text,
            "tokenizer": {"kind": "gpt2", "path": tokenizer},
            "val_fraction": 0.01,
            "split": "hash",
        }
    )
    began = time.perf_counter()
    with text.open("rb") as file:
        identity = hashlib.file_digest(file, "sha256").hexdigest()
    source = Source(str(text), identity, text.stat().st_size, stream, as_it_is)
    corpus = prepare_source(config, source, out, workers=workers)
    seconds = time.perf_counter() - began
    return _result(corpus.count("train") + corpus.count("val"), seconds)


def _nanogpt(text: Path, out: Path, tokenizer: Path, workers: int) -> dict[str, Any]:
    """The steps of nanoGPT's data/openwebtext/prepare.py, on local text, with tiktoken's encoding made offline."""
    import datasets
    import numpy as np
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    datasets.disable_progress_bars()
    ranks = data_gym_to_mergeable_bpe_ranks(str(tokenizer / "vocab.bpe"), str(tokenizer / "encoder.json"))
    encoding = tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=50257,
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )

    def process(example: dict[str, Any]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(example["text"])
        ids.append(encoding.eot_token)
        return {"ids": ids, "len": len(ids)}

    out.mkdir(parents=True)
    began = time.perf_counter()
    dataset: Any = datasets.load_dataset("json", data_files=str(text), split="train")
    loaded = time.perf_counter()
    splits = dataset.train_test_split(test_size=0.01, seed=2357, shuffle=True)
    splits["val"] = splits.pop("test")
    tokenized = splits.map(process, remove_columns=["text"], num_proc=workers)
    tokens = 0
    for split, part in tokenized.items():
        # With [:], a plain read of the column, as `datasets` did when that script was written; without it the lazy
        # column of version 4 makes this loop several times as slow.
        length = int(np.sum(part[:]["len"], dtype=np.uint64))
        array = np.memmap(out / f"{split}.bin", dtype=np.uint16, mode="w+", shape=(length,))
        at, batches = 0, min(1024, len(part))
        for number in range(batches):
            batch = part.shard(num_shards=batches, index=number, contiguous=True).with_format("numpy")
            ids = np.concatenate(batch[:]["ids"])
            array[at : at + len(ids)] = ids
            at += len(ids)
        array.flush()
        tokens += length
    return _result(tokens, time.perf_counter() - loaded, loaded - began)


if __name__ == "__main__":
    name, text, out, tokenizer, workers = sys.argv[1:]
    side = {"ours": _ours, "nanogpt": _nanogpt}[name]
    print(json.dumps(side(Path(text), Path(out), Path(tokenizer), int(workers))))
