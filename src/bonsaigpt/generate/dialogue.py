"""A dialogue as text with roles, over one row of a session whose cache keeps the history."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from bonsaigpt.data.template import Template
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import GenerateError, TokenizerError
from bonsaigpt.generate.requests import Event, Request
from bonsaigpt.generate.session import Session

__all__ = ["Dialogue", "Template"]


class Dialogue:
    """Turns of a user and a model.

    Args:
        session: made with ``reuse``, so that the history is read once.
        request: how to answer; its prompt and stop strings are the dialogue's to set.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, request: Request, template: Template) -> None:
        if not template.stop:
            raise GenerateError("a dialogue needs a role for the user, e.g. 'User: ': it ends the model's turn")
        try:
            tokenizer.encode(template.system + template.turn("") + template.end)
        except TokenizerError as error:
            raise GenerateError(f"the roles cannot be written: {error} Choose others for the dialogue.") from None
        self._session, self._tokenizer, self._request, self._template = session, tokenizer, request, template
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self._history = self._tokenizer.encode(self._template.system).tolist()
        self._before: list[int] | None = None
        self._tries = 0

    def say(self, text: str) -> Generator[Event, None, None]:
        """The user's turn, and the events of the model's answer; it may be left at any moment.

        Raises:
            TokenizerError: a character that the model does not know; the dialogue is as it was.
            GenerateError: the turn does not fit; the dialogue is as it was.
        """
        turn = self._tokenizer.encode(self._template.turn(text)).tolist()
        return self._answer([*self._history, *turn], 0)

    def retry(self) -> Generator[Event, None, None]:
        """Another answer to the last turn, with other noise.

        Raises:
            GenerateError: nothing was said yet.
        """
        if self._before is None:
            raise GenerateError("nothing was said yet: there is no answer to give again")
        return self._answer(self._before, self._tries + 1)

    def _answer(self, before: list[int], tries: int) -> Generator[Event, None, None]:
        sampling = replace(self._request.sampling, row=self._request.sampling.row + tries)
        request = replace(self._request, prompt=before, stop=(self._template.stop,), sampling=sampling)
        number = self._session.add(request)
        self._before, self._tries = before, tries
        return self._events(before, number)

    def _events(self, before: list[int], number: int) -> Generator[Event, None, None]:
        answer, chosen = "", list[int]()
        try:
            while self._session.busy:
                for event in self._session.step():
                    if event.request == number:
                        event.check()
                        answer += event.piece
                        chosen += [event.token] if event.token is not None else []
                        yield event
        finally:  # however it ended, what was said is said
            self._session.cancel(number)
            text = answer.removesuffix(self._template.end) + self._template.end
            self._history = [*before, *self._tokens(text, chosen)]

    def _tokens(self, text: str, chosen: list[int]) -> list[int]:
        """A text as the tokens that the model chose for it, which its cache holds, as far as they go."""
        rest, data = text.encode(), b""
        for count, token in enumerate(chosen):
            data += self._tokenizer.decode_bytes([token])
            if not rest.startswith(data):
                chosen = chosen[:count]
                break
        while chosen:
            try:
                left = rest[len(self._tokenizer.decode_bytes(chosen)) :].decode()
            except UnicodeDecodeError:  # the last one ends within a character
                chosen = chosen[:-1]
            else:
                return [*chosen, *self._tokenizer.encode(left).tolist()]
        return self._tokenizer.encode(text).tolist()
