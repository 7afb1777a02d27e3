"""From a data configuration to something that gives batches; text is tokenised once and kept by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bonsaigpt.config import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    CorpusData,
    DataConfig,
    Gpt2TokenizerConfig,
    MixtureData,
    ReadingData,
    RunConfig,
    TaskData,
    TextData,
    ZeroOneData,
)
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.corpora import Document, documents
from bonsaigpt.data.remote import corpus_folder
from bonsaigpt.data.shards import Corpus, CorpusWriter, open_corpus
from bonsaigpt.data.sources import source_of
from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from bonsaigpt.data.toys import zero_one
from bonsaigpt.errors import DataError

__all__ = ["open_source", "prepare"]

_HASH_FROM = 20
"""Documents from which on `split = auto` holds out whole documents."""
_BATCH = 64
"""Documents that are encoded at once."""

Say = Callable[[str], None]
"""Receives one line per stage."""
Advance = Callable[[str, int, int], None]
"""``advance(what, done, total)``; total 0 means that nobody knows."""


def _silent(*_: object) -> None:
    """Nobody listens."""


def open_source(config: RunConfig, corpora: Path, *, say: Say = _silent, advance: Advance = _silent) -> BatchSource:
    """Whatever a run trains on, ready for ``batch_at``; prepared first if it is not yet."""

    def corpus_of(data: ReadingData) -> Corpus:
        return prepare(data, corpora, seed=config.seed, say=say, advance=advance)  # type: ignore[arg-type]

    return source_of(config, corpus_of, say=say, advance=advance)


def prepare(
    config: DataConfig, corpora: Path, *, seed: int = 0, say: Say = _silent, advance: Advance = _silent
) -> Corpus:
    """Tokenise a source into ``corpora/KIND-KEY``, or open what is there.

    The key is a hash of the settings and of the text itself, so a changed file is prepared anew and an unchanged one
    never is.
    """
    if isinstance(config, TaskData):
        raise DataError(f"the toy `{config.kind}` is made while training: there is nothing to prepare.")
    if isinstance(config, MixtureData):
        raise DataError("a mixture is prepared part by part: prepare its parts, or train, which does it.")
    if isinstance(config, CorpusData):
        return open_corpus(corpus_folder(config.path, corpora, advance=advance))
    if isinstance(config, ZeroOneData):
        return _prepare_zero_one(config, corpora, seed)
    found = documents(config)
    digest = hashlib.sha256()
    for document in found:
        digest.update(f"{len(document.text)}\0".encode())
        digest.update(document.text.encode("utf-8", errors="surrogatepass"))
    text_sha256 = digest.hexdigest()
    folder = corpora / f"{config.kind}-{_key(config, text_sha256)}"
    if folder.exists():
        corpus = open_corpus(folder)
        if corpus.text_sha256 != text_sha256:
            raise DataError(f"{folder} holds another text than it is named for: delete it to prepare it anew")
        return corpus

    train, val, how = split_documents(found, config)
    say(f"{len(found)} documents, {sum(len(d.text) for d in found):,} characters; {how}")
    advance(f"{config.tokenizer.kind} tokenizer", 0, 0)
    tokenizer = make_tokenizer(config, train, val)
    if tokenizer.kind == "bpe":
        say(f"tokenizer: {tokenizer.vocab_size} tokens")
    with CorpusWriter(folder, tokenizer) as writer:
        for split, part in (("train", train), ("val", val)):
            writer.write(split, _encoded(part, tokenizer, lambda n, of: advance("encoding", n, of)))
        source = str(config.path) if getattr(config, "path", None) else config.kind
        corpus = writer.finish(source=source, text_sha256=text_sha256, split=how, documents=len(found), notes={})
    say(f"{corpus.count('train'):,} training and {corpus.count('val'):,} validation tokens in {folder}")
    return corpus


def split_documents(found: list[Document], config: TextData) -> tuple[list[Document], list[Document], str]:
    """Training and validation documents, and in words how they were told apart."""
    fraction = config.val_fraction
    if config.split == "hash" or (config.split == "auto" and len(found) >= _HASH_FROM):
        # A document's side depends on its content alone: it stays there however much else is prepared.
        sides = [_content_hash(d.text) < fraction for d in found]
        train = [d for d, held in zip(found, sides, strict=True) if not held]
        val = [d for d, held in zip(found, sides, strict=True) if held]
        if train and val:
            return train, val, f"whole documents whose content hash is below {fraction:g} validate"
        if config.split == "hash":
            raise DataError(
                f"data.split = 'hash' put all {len(found)} documents on one side: use data.split = 'tail', "
                "or another data.val_fraction"
            )
    cuts = [int(len(d.text) * (1 - fraction)) for d in found]
    train = [Document(d.name, d.text[:cut]) for d, cut in zip(found, cuts, strict=True) if cut]
    val = [Document(d.name, d.text[cut:]) for d, cut in zip(found, cuts, strict=True) if cut < len(d.text)]
    if not (train and val):
        length = sum(len(d.text) for d in found)
        raise DataError(
            f"the text has {length} character{'s' * (length != 1)}: too short to hold out {fraction:.0%} of it. "
            "Give more text."
        )
    return train, val, f"the last {fraction:.0%} of each document validates"


def make_tokenizer(config: TextData, train: list[Document], val: list[Document]) -> Tokenizer:
    """The tokenizer that the configuration asks for. Merges are learned on the training side only."""
    match config.tokenizer:
        case CharTokenizerConfig():
            # The alphabet takes both sides: a held-out character must have an id, though it is never learned.
            return CharTokenizer(set().union(_SEPARATOR, *(set(d.text) for d in [*train, *val])))
        case ByteTokenizerConfig():
            return ByteTokenizer()
        case BpeTokenizerConfig(vocab_size=vocab_size):
            return BpeTokenizer.train((d.text for d in train), vocab_size)
        case Gpt2TokenizerConfig(path=path):
            return BpeTokenizer.from_gpt2_files(path)


_SEPARATOR = "\n"
"""What a character model, which has no end-of-text token, sees between documents."""


def _encoded(part: list[Document], tokenizer: Tokenizer, advance: Callable[[int, int], None]) -> Iterator[np.ndarray]:
    if tokenizer.end_of_text is None:
        between = tokenizer.encode(_SEPARATOR)
    else:
        between = np.array([tokenizer.end_of_text])
    for first in range(0, len(part), _BATCH):
        advance(first, len(part))
        for number, ids in enumerate(tokenizer.encode_documents([d.text for d in part[first : first + _BATCH]])):
            if first + number:
                yield between
            yield ids


def _prepare_zero_one(config: ZeroOneData, corpora: Path, seed: int) -> Corpus:
    folder = corpora / f"{config.kind}-{_key(config, f'seed {seed}')}"
    if folder.exists():
        return open_corpus(folder)
    text = zero_one.text(config, seed)
    tokenizer = CharTokenizer("01")
    ids = tokenizer.encode(text.decode("ascii"))
    cut = int(config.sequences * (1 - config.val_fraction)) * config.length
    if not 0 < cut < len(ids):
        raise DataError(f"{config.sequences} sequences leave nothing to hold out: make more of them.")
    with CorpusWriter(folder, tokenizer) as writer:
        writer.write("train", [ids[:cut]])
        writer.write("val", [ids[cut:]])
        return writer.finish(
            source=f"{config.sequences} sequences of {config.length} symbols, {zero_one.words(config)}, seed {seed}",
            text_sha256=hashlib.sha256(text).hexdigest(),
            split=f"the last {config.val_fraction:.0%} of the sequences validate",
            documents=config.sequences,
            notes={
                "entropy_nats": zero_one.entropy_rate(config),
                "floor_nats": zero_one.floor(config, ids, cut + 1),
            },
        )


def _key(config: DataConfig, text: str) -> str:
    """Twelve hex digits over all settings that change the tokens on disk."""
    settings = config.model_dump(mode="json", exclude={"order", "document_mask", "path"})
    if isinstance(config, TextData) and isinstance(config.tokenizer, Gpt2TokenizerConfig):
        settings["tokenizer"] = hashlib.sha256(make_tokenizer(config, [], []).to_json().encode()).hexdigest()
    return hashlib.sha256((json.dumps(settings, sort_keys=True) + text).encode()).hexdigest()[:12]


def _content_hash(text: str) -> float:
    """A document's place in [0, 1), a function of its text."""
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
