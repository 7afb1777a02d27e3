"""From a data configuration to something that gives batches; text is tokenised once and kept by its content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bonsaigpt.config import (
    CorpusData,
    DataConfig,
    ExamplesData,
    MixtureData,
    PairsData,
    ReadingData,
    RunConfig,
    TaskData,
    TextData,
    ZeroOneData,
)
from bonsaigpt.data.batch_source import source_of
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.corpora import open_text
from bonsaigpt.data.corpora.source import Source
from bonsaigpt.data.growing import claim
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.pool import cores
from bonsaigpt.data.remote import corpus_folder
from bonsaigpt.data.shards import Corpus, Counts, open_corpus, verify_shards
from bonsaigpt.data.tokenising import Preparation
from bonsaigpt.data.tokenizers import CharTokenizer, Tokenizer, given_tokenizer
from bonsaigpt.data.toys import zero_one
from bonsaigpt.data.writing import CorpusWriter
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance, Say, silent

__all__ = ["file_hashes", "open_source", "prepare", "prepare_source"]

_ALONE = 8 << 20
"""Bytes of source up to which this process does everything itself: others take longer to start."""


def open_source(config: RunConfig, corpora: Path, *, say: Say = silent, advance: Advance = silent) -> BatchSource:
    """Whatever a run trains on, ready for ``batch_at``; prepared first if it is not yet."""

    def corpus_of(data: ReadingData) -> Corpus:
        return prepare(data, corpora, seed=config.seed, say=say, advance=advance)  # type: ignore[arg-type]

    return source_of(config, corpus_of, corpora, say=say, advance=advance)


def prepare(
    config: DataConfig,
    corpora: Path,
    *,
    seed: int = 0,
    workers: int | None = None,
    download: bool = False,
    say: Say = silent,
    advance: Advance = silent,
) -> Corpus:
    """Tokenise a source into ``corpora/KIND-KEY``, or open what is there and verify it.

    The key is a hash of the settings and of the text itself, so a changed file is prepared anew and an unchanged one
    never is. A preparation that was stopped, however that happened, goes on where it was; the files it ends in are the
    same bytes, whatever the number of workers.

    Args:
        workers: processes that clean and encode; None: one a core, or none for a text of a few MB.
        download: whether the network may be used.

    Raises:
        DataError: nothing to prepare, no text, or a shard that was changed since it was written.
        OutputError: the corpus cannot be written.
    """
    if isinstance(config, TaskData):
        raise DataError(f"the toy `{config.kind}` is made while training: there is nothing to prepare.")
    if isinstance(config, ExamplesData | PairsData):
        raise DataError("examples are encoded when they are trained on: there is nothing to prepare.")
    if isinstance(config, MixtureData):
        raise DataError("a mixture has no corpus of its own: prepare its parts one by one.")
    if isinstance(config, CorpusData):
        corpus = open_corpus(corpus_folder(config.path, corpora, advance=advance))
        verify_shards(corpus, file_hashes(corpora), advance=advance)
        return corpus
    if isinstance(config, ZeroOneData):
        corpus = _make_zero_one(config, corpora, seed)
        verify_shards(corpus, file_hashes(corpora), advance=advance)
        return corpus
    hashes = file_hashes(corpora)
    source = open_text(config, hashes=hashes, download=download, advance=advance)
    return prepare_source(config, source, corpora, hashes=hashes, workers=workers, say=say, advance=advance)


def prepare_source(
    config: TextData,
    source: Source,
    corpora: Path,
    *,
    hashes: FileHashes | None = None,
    workers: int | None = None,
    say: Say = silent,
    advance: Advance = silent,
) -> Corpus:
    """``prepare`` for a text that is open; ``config`` says the rest, and ``hashes`` hold what was learnt of it."""
    tokenizer = given_tokenizer(config.tokenizer)
    folder = corpora / f"{config.model_dump()['kind']}-{_text_key(config, tokenizer, source)}"
    if workers is None:
        workers = 0 if source.size is not None and source.size <= _ALONE else cores()
    with claim(folder, say) as work:
        if work is None:
            corpus = open_corpus(folder)
        else:
            if note := source.note():
                say(f"{source.name}: {note}")
            preparation = Preparation(config, source, work, tokenizer, workers=workers, say=say, advance=advance)
            corpus = preparation.run()
    verify_shards(corpus, hashes or file_hashes(corpora), advance=advance)
    return corpus


def file_hashes(corpora: Path) -> FileHashes:
    """What is known of files read before: of sources, and of the shards below ``corpora``."""
    return FileHashes(corpora / ".hashes.json")


def _make_zero_one(config: ZeroOneData, corpora: Path, seed: int) -> Corpus:
    settings = config.model_dump(mode="json", exclude={"order", "document_mask"})
    folder = corpora / f"{config.kind}-{_key(settings, f'seed {seed}')}"
    if folder.exists():
        return open_corpus(folder)
    text = zero_one.text(config, seed)
    tokenizer = CharTokenizer("01")
    ids = tokenizer.encode(text.decode("ascii"))
    sequences = int(config.sequences * (1 - config.val_fraction))
    cut = sequences * config.length
    if not 0 < cut < len(ids):
        raise DataError(f"{config.sequences} sequences leave nothing to hold out: make more of them.")
    sizes = {"train": (sequences, cut), "val": (config.sequences - sequences, len(ids) - cut)}
    with CorpusWriter(folder, tokenizer) as writer:
        writer.write("train", [ids[:cut]])
        writer.write("val", [ids[cut:]])
        return writer.finish(
            source=f"{config.sequences} sequences of {config.length} symbols, {zero_one.words(config)}, seed {seed}",
            identity=hashlib.sha256(text).hexdigest(),
            split=f"the last {config.val_fraction:.0%} of the sequences validate",
            documents=config.sequences,
            counts={split: Counts(documents, size, size, size) for split, (documents, size) in sizes.items()},
            notes={
                "entropy_nats": zero_one.entropy_rate(config),
                "floor_nats": zero_one.floor(config, ids, cut + 1),
            },
        )


def _text_key(config: TextData, tokenizer: Tokenizer | None, source: Source) -> str:
    settings = config.model_dump(mode="json", include={"tokenizer", "split", "val_fraction", "dedup", "shard_tokens"})
    if tokenizer is not None:  # whatever file it came from
        settings["tokenizer"] = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    return _key(settings, source.identity)


def _key(settings: Any, text: str) -> str:
    """Twelve hex digits over all that changes the files: the settings, and the hash of the text."""
    return hashlib.sha256((json.dumps(settings, sort_keys=True) + text).encode()).hexdigest()[:12]
