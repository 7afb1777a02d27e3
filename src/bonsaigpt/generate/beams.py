"""Beam search: the likeliest text that a few hypotheses find, without chance.

Several texts grow side by side; at each step all their continuations are ranked together and the best are kept. A text
that ends is set aside, and at last the best by (sum of log-probabilities) / length ** penalty wins (Wu et al. 2016,
section 7, in the form that transformers uses). Likelier is not better: open-ended text becomes dull and repeats itself
(Holtzman et al. 2020); it is for short answers with one right wording.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Decoder
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate.context import Context, check_lengths, read
from bonsaigpt.generate.requests import Completion, Finish, Request
from bonsaigpt.generate.text import TextStream
from bonsaigpt.sampling import Sampling, log_probabilities

__all__ = ["beam_search"]


def beam_search(
    decoder: Decoder, tokenizer: Tokenizer, request: Request, *, length_penalty: float = 1.0
) -> list[Completion]:
    """As many texts as the decoder has rows, the best first; the request's sampling must be left alone.

    Args:
        length_penalty: 0 ranks by probability, which favours short texts; 1 by the mean of a token; more favours long
            ones. It matters only where texts can end before ``max_tokens``.

    Raises:
        GenerateError: the request asks for chance, a pattern or log-probabilities; or it can never be met.
    """
    if replace(request.sampling, temperature=1.0, seed=0, row=0) != Sampling():
        raise GenerateError("beam search takes the model's own probabilities: leave the rules of sampling out")
    if request.pattern is not None:
        raise GenerateError("beam search cannot follow a pattern: sample with one, greedily with --temperature 0")
    if request.logprobs is not None:
        raise GenerateError("beam search reports no log-probabilities of tokens: sample with --temperature 0 instead")
    if not np.isfinite(length_penalty):
        raise GenerateError(f"a length penalty of {length_penalty} cannot be: use a finite one, e.g. 1")
    return _Search(decoder, tokenizer, request, length_penalty).run()


class _Search:
    """The hypotheses at work and those that ended."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, request: Request, length_penalty: float) -> None:
        self.decoder, self.tokenizer, self.request, self.penalty = decoder, tokenizer, request, length_penalty
        prompt = [int(token) for token in request.prompt]
        block = decoder.block_size
        self.slide = check_lengths(len(prompt), request.max_tokens, block, request.overflow, request.slide)
        self.prompt = len(prompt)
        self.live: list[tuple[float, Context]] = [(0.0, Context(0, prompt, block=block, slide=self.slide))]
        self.ended: list[tuple[float, Completion]] = []

    def run(self) -> list[Completion]:
        for _ in range(self.request.max_tokens):
            self._extend()
            if not self.live or self._cannot_improve():
                break
        for score, context in self.live:
            self._set_aside(score, context.tokens[self.prompt :], "length")
        self.ended.sort(key=lambda entry: -entry[0])
        return [completion for _, completion in self.ended[: self.decoder.rows]]

    def _extend(self) -> None:
        """One more token: the best of all continuations of all hypotheses."""
        width = self.decoder.rows
        logits_RV = read(self.decoder, [context for _, context in self.live])[:, : self.tokenizer.vocab_size]
        scores_RV = np.stack(
            [score + log_probabilities(row) for (score, _), row in zip(self.live, logits_RV, strict=True)]
        )
        going: list[tuple[float, int, int]] = []
        for flat in np.argsort(-scores_RV, axis=None, kind="stable"):
            source, token = divmod(int(flat), scores_RV.shape[1])
            score, made = float(scores_RV[source, token]), self.live[source][1].tokens[self.prompt :]
            if token in self.request.stop_tokens:
                self._set_aside(score, [*made, token], "stop_token")
            elif self.request.stop and self._text([*made, token]).stopped is not None:
                self._set_aside(score, [*made, token], "stop_string")
            else:
                going.append((score, source, token))
            if len(going) == width:
                break
        self._move(going)

    def _move(self, going: list[tuple[float, int, int]]) -> None:
        """Give each hypothesis a row: the first of a source stays, its others take the rows of those that died."""
        heirs = {source for _, source, _ in going}
        taken = {self.live[source][1].row for source in heirs}
        free = [row for row in range(self.decoder.rows) if row not in taken]
        live: list[tuple[float, Context]] = []
        for score, source, token in going:
            parent = self.live[source][1]
            row = parent.row if source in heirs else free.pop()
            if source in heirs:
                heirs.remove(source)
            else:
                self.decoder.copy_row(parent.row, row)
            child = Context(row, parent.tokens, block=self.decoder.block_size, slide=self.slide, held=parent.held)
            child.append(token)
            live.append((score, child))
        self.live = live

    def _set_aside(self, score: float, tokens: list[int], finish: Finish) -> None:
        shown = tokens[:-1] if finish == "stop_token" else tokens
        completion = Completion(0, tokens=tokens, text=self._text(shown).text, finish=finish)
        self.ended.append((score / max(1, len(tokens)) ** self.penalty, completion))

    def _text(self, tokens: list[int]) -> TextStream:
        stream = TextStream(self.tokenizer, self.request.stop)
        for token in tokens:
            stream.push(token)
        stream.finish()
        return stream

    def _cannot_improve(self) -> bool:
        """Whether no hypothesis at work can still enter the best: its probability only falls."""
        if len(self.ended) < self.decoder.rows:
            return False
        last = sorted((score for score, _ in self.ended), reverse=True)[self.decoder.rows - 1]
        made = len(self.live[0][1].tokens) - self.prompt
        lengths = (made + 1, self.request.max_tokens)
        return all(max(score / length**self.penalty for length in lengths) < last for score, _ in self.live)
