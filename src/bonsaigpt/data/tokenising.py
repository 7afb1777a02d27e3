"""One text on its way into shards: choose the split, make the tokenizer, encode, and go on after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from bonsaigpt.config import (
    BpeTokenizerConfig,
    TextData,
)
from bonsaigpt.data.corpora.source import Cursor, Source
from bonsaigpt.data.growing import Growing, Work
from bonsaigpt.data.pieces import (
    SEPARATOR,
    Alphabet,
    Encode,
    Learned,
    Piece,
    Sides,
    Texts,
    content_hash,
    cut_pieces,
    with_text,
)
from bonsaigpt.data.pool import in_order
from bonsaigpt.data.seen import Seen
from bonsaigpt.data.shards import Corpus
from bonsaigpt.data.tokenizers import BpeTokenizer, CharTokenizer, Tokenizer, from_json
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance, Say
from bonsaigpt.units import named

__all__ = ["Preparation"]

_HASH_FROM = 20
"""Documents from which on `split = auto` holds out whole documents."""

Result = TypeVar("Result")


class Preparation:
    """Fills a work folder, and moves it into place."""

    def __init__(
        self,
        config: TextData,
        source: Source,
        work: Work,
        given: Tokenizer | None,
        *,
        workers: int,
        say: Say,
        advance: Advance,
    ) -> None:
        self._config, self._source, self._work, self._given = config, source, work, given
        self._workers, self._say, self._advance = workers, say, advance

    def run(self) -> Corpus:
        """Go on with whatever is there, to the end.

        Raises:
            DataError: no text, or too little to hold some out.
            OutputError: the disk is full, or may not be written.
        """
        if self._work.is_complete:
            return self._work.move()
        self._advance("reading the first documents", 0, 0)
        self._sides = self._choose_sides()
        tokenizer = self._tokenizer()
        tokenizer_json = tokenizer.to_json()
        growing = self._growing(tokenizer)
        if not self._work.has_progress or not growing.restore():
            if self._work.has_progress:
                self._say(f"what {self._work.folder} holds was changed from outside: beginning anew")
            growing.abandon()
            self._work.clear()  # a kill before the first commit leaves files that nothing is known of
            self._work.keep_tokenizer(tokenizer_json)
            growing = self._growing(tokenizer)
        try:
            return self._encode(growing, tokenizer_json)
        except KeyboardInterrupt:
            if self._work.has_progress:
                self._say(f"what is done stays in {self._work.folder}: the same command goes on from there")
            raise
        finally:
            growing.abandon()

    def _growing(self, tokenizer: Tokenizer) -> Growing:
        config = self._config
        return Growing(self._work, tokenizer, by=self._sides.by, dedup=config.dedup, shard_tokens=config.shard_tokens)

    # ------------------------------------------------------------------ the split

    def _choose_sides(self) -> Sides:
        """`auto` and `hash` read the start of the text, until both sides have a document."""
        config = self._config
        if config.split == "tail":
            return Sides("tail", config.val_fraction)
        least = _HASH_FROM if config.split == "auto" else 1
        count, held, seen = 0, 0, set[int]()
        for document, _ in self._source.stream(Cursor()):
            cleaned = None if document.start else self._source.clean(document)
            if cleaned is None or not with_text(cleaned):
                continue
            value = content_hash(cleaned)
            if config.dedup:
                if value in seen:
                    continue
                seen.add(value)
            count += 1
            held += value / 2**64 < config.val_fraction
            if count >= least and 0 < held < count:
                return Sides("hash", config.val_fraction)
        if config.split == "hash":
            raise DataError(
                f"data.split = 'hash' put all {count:,} documents on one side: use data.split = 'tail', "
                "or another data.val_fraction"
            )
        if count < least:
            return Sides("tail", config.val_fraction)
        which = "all" if held else "none"
        return Sides("tail", config.val_fraction, f"{which} of {named(count, 'document')} fell to validation")

    # ------------------------------------------------------------------ the tokenizer

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer that the configuration asks for, or the one that was made before a stop."""
        kept = self._work.tokenizer_json()
        if self._given is not None:
            return self._given
        if kept is not None:
            return from_json(kept, origin=f"{self._work.folder}/tokenizer.json")
        return self._learned_tokenizer()

    def _learned_tokenizer(self) -> Tokenizer:
        what = f"{self._config.tokenizer.kind} tokenizer"
        self._advance(what, 0, 0)
        if isinstance(self._config.tokenizer, BpeTokenizerConfig):
            with closing(self._results(Texts(self._source.clean, self._sides), what)) as pieces:
                tokenizer = BpeTokenizer.train(
                    self._to_learn(pieces), **self._config.tokenizer.model_dump(exclude={"kind"})
                )
            self._say(f"tokenizer: {tokenizer.vocab_size} tokens")
            return tokenizer
        # The alphabet takes both sides: a held-out character must have an id, though it is never learned.
        with closing(self._results(Alphabet(self._source.clean), what)) as pieces:
            return CharTokenizer(set(SEPARATOR).union(*pieces))

    def _to_learn(self, pieces: Iterable[Learned]) -> Iterator[str]:
        """Merges are learned on the training side only, and from no document twice if duplicates are dropped."""
        seen = Seen() if self._config.dedup else None
        last = True
        for piece in pieces:
            if piece.is_rest:
                keep = [last] * len(piece.texts)
            else:
                new = ~piece.held_out if seen is None else seen.add(piece.hashes) & ~piece.held_out
                keep = new.tolist()
                last = bool(keep and keep[-1])
            yield from (text for text, kept in zip(piece.texts, keep, strict=True) if kept)

    # ------------------------------------------------------------------ the stream

    def _encode(self, growing: Growing, tokenizer_json: str) -> Corpus:
        if growing.cursor.read:
            share = f" at {growing.cursor.read / self._source.size:.0%}" if self._source.size else ""
            self._say(f"going on{share} with what {self._work.folder} holds")
        task = Encode(self._source.clean, self._sides, tokenizer_json)
        with closing(self._results(task, "tokenising", growing)) as pieces:
            for piece in pieces:
                growing.add(piece)
        counts = growing.counts
        characters, size = (sum(getattr(c, n) for c in counts.values()) for n in ("characters", "bytes"))
        if not characters:
            raise DataError(f"there is nothing but white space in {self._source.name}: give a text.")
        if not all(c.tokens for c in counts.values()):
            raise DataError(
                f"the text has {named(characters, 'character')}: too short to hold out "
                f"{self._config.val_fraction:.0%} of it. Give more text."
            )
        corpus = growing.finish(source=self._source.name, identity=self._source.identity, split=self._sides.words())
        left_out = [
            (growing.duplicates, named(growing.duplicates, "duplicate")),
            (growing.dropped, f"{growing.dropped:,} without text"),
        ]
        words = "".join(f", {what} left out" for count, what in left_out if count)
        self._say(f"{named(growing.documents, 'document')}{words}, {named(characters, 'character')}; {corpus.split}")
        self._say(
            f"{counts['train'].tokens:,} training and {counts['val'].tokens:,} validation tokens, "
            f"{size / (counts['train'].tokens + counts['val'].tokens):.2f} bytes each, in {corpus.folder}"
        )
        return corpus

    def _results(
        self, task: Callable[[Piece], Result], what: str, growing: Growing | None = None
    ) -> Generator[Result, None, None]:
        """The task done on each piece of the text, or of what is left of it."""
        return in_order(task, self._pieces(what, growing), workers=self._workers)

    def _pieces(self, what: str, growing: Growing | None) -> Iterator[Piece]:
        start = growing.cursor if growing else Cursor()
        tokens_before = growing.tokens if growing else 0
        self._advance(what, start.read, self._source.size or 0)
        began = time.monotonic()
        for piece in cut_pieces(self._source.stream(start)):
            yield piece
            seconds = max(time.monotonic() - began, 1e-3)
            speed = f"{(piece.cursor.read - start.read) / seconds / 1e6:.1f} MB/s"
            if growing is not None:
                speed += f"  {(growing.tokens - tokens_before) / seconds / 1e6:.2f} M tokens/s"
            self._advance(what, piece.cursor.read, self._source.size or 0, speed)
