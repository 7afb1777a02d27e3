"""Many texts at once, each at its own pace: continuous batching (Yu et al. 2022, "Orca", section 3).

A session has as many rows as its decoder. One ``step`` makes a token for every row that is at work, and a row that
ends is free for the next request in the queue, so a long text never waits for a short one nor the reverse. What a
request gets depends on nothing but itself: not on the row, its neighbours, or the moment when it came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Decoder
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate.context import Context, check_lengths, read
from bonsaigpt.generate.requests import Completion, Event, Finish, LogProb, Request
from bonsaigpt.generate.speculation import Draft, Speculation
from bonsaigpt.generate.text import TextStream
from bonsaigpt.sampling import Chooser, choose_rows

__all__ = ["Session"]


@dataclass(eq=False)
class _Row:
    """A request at work."""

    number: int
    request: Request
    context: Context
    chooser: Chooser
    stream: TextStream | None
    made: int = 0
    logits_V: np.ndarray | None = None
    """After the last token, where they are known already."""


@dataclass(eq=False)
class _Held:
    """What a row's cache holds besides: the last request's prompt and the logits after it."""

    context: Context | None = None
    prompt: list[int] = field(default_factory=list)
    logits_V: np.ndarray | None = None

    def still_begins_with(self, prompt: list[int]) -> bool:
        """Whether the cache begins with a prompt; the context may have moved on."""
        return self.context is not None and self.context.seen()[: len(prompt)] == prompt


class Session:
    """Requests in, events out.

    Args:
        tokenizer: makes text of tokens; without one, events have tokens alone.
        vocab_size: draw from the first so many ids: a head padded beyond its tokenizer has ids without a text.
        draft: guesses several tokens, which the model then reads at once (speculative decoding).
        reuse: begin with what a free row's cache holds already of a prompt, e.g. of a dialogue that goes on. The
            logits are then the same but for rounding.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None = None,
        *,
        vocab_size: int | None = None,
        draft: Draft | None = None,
        reuse: bool = False,
    ) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer
        self.speculation = Speculation()
        """How often the draft was right."""
        self._vocab_size = vocab_size or (tokenizer.vocab_size if tokenizer is not None else decoder.vocabulary)
        self._draft, self._reuse = draft, reuse
        self._rows: dict[int, _Row] = {}
        self._held = [_Held() for _ in range(decoder.rows)]
        self._queue: deque[tuple[int, Request, Chooser]] = deque()
        self._ended: list[Event] = []
        self._count = 0

    def add(self, request: Request) -> int:
        """Queue a request; its number in events.

        Raises:
            GenerateError: it can never be met.
        """
        check_lengths(len(request.prompt), request.max_tokens, self.decoder.block_size, request.overflow, request.slide)
        if self.tokenizer is None and request.stop:
            raise GenerateError("stop strings need a tokenizer: give one to the session")
        prompt = np.asarray(request.prompt, dtype=np.int64)
        if prompt.min() < 0 or prompt.max() >= self._vocab_size:
            raise GenerateError(f"a token of the prompt is outside the vocabulary of {self._vocab_size}")
        constraint = request.pattern.start() if request.pattern is not None else None
        chooser = Chooser(request.sampling, prompt=prompt, vocab_size=self._vocab_size, constraint=constraint)
        number, self._count = self._count, self._count + 1
        self._queue.append((number, request, chooser))
        return number

    def cancel(self, number: int) -> None:
        """End a request now; its last event comes with the next step. One that has ended already is let be."""
        waiting = [entry for entry in self._queue if entry[0] == number]
        for entry in waiting:
            self._queue.remove(entry)
            self._ended.append(Event(number, finish="cancelled"))
        for row in list(self._rows.values()):
            if row.number == number:
                self._ended.append(self._end(row, "cancelled"))

    @property
    def busy(self) -> bool:
        """Whether another step brings something."""
        return bool(self._rows or self._queue or self._ended)

    def step(self) -> list[Event]:
        """Admit what fits, then make the next token of every row at work; with a draft perhaps several of each.

        What goes wrong with one request, such as logits that are not finite, ends that request alone.
        """
        self._admit()
        events, self._ended = self._ended, []
        rows: list[_Row] = []
        for _, row in sorted(self._rows.items()):
            try:
                if self._draft is None or not self._speculate(row, events):
                    rows.append(row)
            except GenerateError as error:
                events.append(self._fail(row, error))
        if rows:
            logits_RV = self._logits(rows)
            for row, token, logits_V in zip(rows, _choose(rows, logits_RV), logits_RV, strict=True):
                failed = isinstance(token, GenerateError)
                events.append(self._fail(row, token) if failed else self._take(row, token, logits_V))
        return events

    def run(
        self, requests: Iterable[Request], *, on_event: Callable[[Event], None] = lambda event: None
    ) -> list[Completion]:
        """Add requests and step until all is done; what became of them, in their order.

        Raises:
            GenerateError: a request can never be met, or failed.
        """
        found = {number: Completion(number) for number in [self.add(request) for request in requests]}
        while self.busy:
            for event in self.step():
                event.check()
                if event.request in found:
                    found[event.request].take(event)
                on_event(event)
        return list(found.values())

    # ------------------------------------------------------------------ rows

    def _admit(self) -> None:
        while self._queue and len(self._rows) < self.decoder.rows:
            number, request, chooser = self._queue.popleft()
            if request.max_tokens == 0:
                self._ended.append(Event(number, finish="length"))
                continue
            block = self.decoder.block_size
            slide = check_lengths(len(request.prompt), request.max_tokens, block, request.overflow, request.slide)
            prompt = [int(token) for token in request.prompt]
            context = Context(0, prompt, block=block, slide=slide)
            logits_V = self._place(context)
            stream = TextStream(self.tokenizer, request.stop) if self.tokenizer is not None else None
            self._rows[context.row] = _Row(number, request, context, chooser, stream, logits_V=logits_V)

    def _place(self, context: Context) -> np.ndarray:
        """Find a row for a new text and read its prompt; logits after it, (V,).

        The same prompt as some row's (best of n, several samples) is copied instead: bit for bit the same.
        """
        free = [row for row in range(self.decoder.rows) if row not in self._rows]
        prompt = context.unread()
        for source, held in enumerate(self._held):
            if held.logits_V is None or held.prompt != prompt or not held.still_begins_with(prompt):
                continue
            if self.decoder.reach(source, len(prompt)) != len(prompt):  # its cache has forgotten what it was then
                continue
            context.row = source if source in free else free[0]
            if source != context.row:
                self.decoder.copy_row(source, context.row)
            self.decoder.truncate(context.row, len(prompt))
            context.held = len(prompt)
            self._held[context.row] = _Held(context, prompt, held.logits_V)
            return held.logits_V
        common = {row: self._common(row, prompt) if self._reuse else 0 for row in free}
        context.row = max(free, key=lambda row: (common[row], -row))
        context.held = self.decoder.reach(context.row, min(common[context.row], len(prompt) - 1))
        self.decoder.truncate(context.row, context.held)
        [logits_V] = read(self.decoder, [context])
        self._held[context.row] = _Held(context, prompt, logits_V)
        return logits_V

    def _common(self, row: int, prompt: Sequence[int]) -> int:
        """How many first tokens of a prompt a row's cache holds."""
        context = self._held[row].context
        seen = context.seen() if context is not None else []
        length = min(len(seen), len(prompt))
        differ = np.flatnonzero(np.array(seen[:length]) != np.array(prompt[:length]))
        return int(differ[0]) if len(differ) else length

    def _logits(self, rows: Sequence[_Row]) -> np.ndarray:
        """Logits after each row's last token, (R, V)."""
        waiting = [row for row in rows if row.logits_V is None]
        fresh = read(self.decoder, [row.context for row in waiting]) if waiting else np.empty((0, 0))
        if len(waiting) == len(rows):
            return fresh
        for row, logits_V in zip(waiting, fresh, strict=True):
            row.logits_V = logits_V
        found = np.stack([row.logits_V for row in rows if row.logits_V is not None])
        for row in rows:
            row.logits_V = None
        return found

    def _speculate(self, row: _Row, events: list[Event]) -> bool:
        """Let the draft guess this row's next tokens and the model judge them; whether there was a guess.

        The model reads all guesses at once; what it read after the first wrong one is forgotten.
        """
        context = row.context
        most = min(context.room(), row.request.max_tokens - row.made - 1)
        is_next = row.logits_V is None and context.held > 0 and len(context.unread()) == 1
        if self._draft is None or most < 1 or not is_next:
            return False
        guesses = self._draft.guess(context, row.chooser, most)
        if not guesses:
            return False
        logits_TV = self.decoder.verify(context.row, np.array([context.tokens[-1], *(token for token, _ in guesses)]))
        context.held += 1
        self.speculation.rounds += 1
        self.speculation.guessed += len(guesses)
        for (guess, probs_V), logits_V in zip([*guesses, (None, None)], logits_TV, strict=True):
            position = len(context.tokens)
            if guess is None or probs_V is None:
                token = row.chooser.choose(logits_V, position=position)
            else:
                token = row.chooser.judge(guess, probs_V, logits_V, position=position)
            right = token == guess
            events.append(self._take(row, token, logits_V))
            self.speculation.right += right
            context.held += right
            if not right or events[-1].finish is not None:
                break
        self.decoder.truncate(context.row, context.held)
        return True

    def _take(self, row: _Row, token: int, logits_V: np.ndarray) -> Event:
        """The row goes on with a token, or ends."""
        if row.chooser.leaves(token):
            return self._end(row, "complete")
        request = row.request
        row.made += 1
        row.context.append(token)
        top = request.logprobs
        logprob = None if top is None else LogProb.of(logits_V[: self._vocab_size], token, top)
        if token in request.stop_tokens:
            return self._end(row, "stop_token", token=token, logprob=logprob)
        row.chooser.accept(token)
        piece = row.stream.push(token) if row.stream is not None else ""
        constraint = row.chooser.constraint
        finish: Finish | None = None
        if row.stream is not None and row.stream.stopped is not None:
            finish = "stop_string"
        elif constraint is not None and not constraint.allowed().any():
            finish = "complete" if constraint.is_done() else "stuck"
        elif row.made == request.max_tokens:
            finish = "length" if constraint is None or constraint.is_done() else "incomplete"
        if finish is not None:
            return self._end(row, finish, token=token, piece=piece, logprob=logprob)
        return Event(row.number, token, piece, logprob)

    def _fail(self, row: _Row, error: GenerateError) -> Event:
        """The row ends, and nobody goes on from what its cache holds."""
        self._held[row.context.row] = _Held()
        return replace(self._end(row, "failed"), error=str(error))

    def _end(
        self, row: _Row, finish: Finish, *, token: int | None = None, piece: str = "", logprob: LogProb | None = None
    ) -> Event:
        """The last event of a row, which is free now."""
        del self._rows[row.context.row]
        if row.stream is not None:
            piece += row.stream.finish()
        return Event(row.number, token, piece, logprob, finish)


def _choose(rows: Sequence[_Row], logits_RV: np.ndarray) -> Sequence[int | GenerateError]:
    """The next token of each row, or why it has none."""
    choosers, positions = [row.chooser for row in rows], [len(row.context.tokens) for row in rows]
    try:
        return choose_rows(logits_RV, choosers, positions)
    except GenerateError:  # of some row: one by one then
        return [_choose_one(*each) for each in zip(choosers, logits_RV, positions, strict=True)]


def _choose_one(chooser: Chooser, logits_V: np.ndarray, position: int) -> int | GenerateError:
    try:
        return chooser.choose(logits_V, position=position)
    except GenerateError as error:
        return error
