"""Examples to token ids, with a mark on those that are to be said.

Each example is   <end of text> given said given said ... <end of text>   and is encoded segment by segment, so that
where the given part ends never depends on merges across the border: a prompt has the same ids in training, in scoring
and in generation. A segment that is to be said and is the name of a special token, ``refund`` where the vocabulary has
``<|refund|>``, is that one token, and needs no end: so a label costs one target, and all labels are scored at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonsaigpt.config import BpeTokenizerConfig, TokenizerConfig
from bonsaigpt.data.examples.reading import Example
from bonsaigpt.data.tokenizers import (
    END_OF_TEXT,
    BpeTokenizer,
    CharTokenizer,
    Tokenizer,
    given_tokenizer,
    label_token,
    with_special,
)
from bonsaigpt.errors import DataError, TokenizerError

__all__ = ["Encoded", "encode_examples", "encode_said", "end_of_text", "prompt_ids", "tokenizer_for"]


@dataclass(frozen=True)
class Encoded:
    """Examples as one array of ids, one behind the other."""

    ids: np.ndarray
    """int32; each example begins with the end-of-text token before it."""
    asked: np.ndarray
    """Whether an id is a target, bool."""
    starts: np.ndarray
    """Where each example starts, and at last where all end, int64."""
    source: np.ndarray
    """Which of the given examples each one is, or is a piece of, int64; ascending."""
    cut: int
    """Examples whose beginning was left out because they were too long."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Positions that each example takes in a row, int64."""
        return np.diff(self.starts) - 1

    def example(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of one example, and which of them are asked for."""
        here = slice(self.starts[number], self.starts[number + 1])
        return self.ids[here], self.asked[here]


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, *, block_size: int, prompts: bool = False
) -> Encoded:
    """The examples as ids. One that is too long for a block loses its beginning; a plain text is cut into pieces.

    Args:
        prompts: ask for what is given as well.

    Raises:
        DataError: the tokenizer has no end-of-text token, or what is to be said last does not fit into a block.
        TokenizerError: a character outside the vocabulary.
    """
    end = end_of_text(tokenizer)
    ids: list[np.ndarray] = []
    asked: list[np.ndarray] = []
    source: list[int] = []
    cut = 0
    for number, example in enumerate(examples):
        try:
            row, marks = _encode(example, tokenizer, end, prompts)
        except TokenizerError as error:
            raise TokenizerError(f"example {number + 1}: {error}") from None
        if len(row) > block_size + 1:
            if example.is_text:  # each piece but the first begins with the token before it
                for first in range(0, len(row) - 1, block_size):
                    piece = slice(first, first + block_size + 1)
                    ids.append(row[piece])
                    asked.append(np.concatenate([[False], marks[piece][1:]]))
                    source.append(number)
                continue
            last = len(encode_said(example.completion, tokenizer))
            if last >= block_size:
                raise DataError(
                    f"example {number + 1} is to end with {last} tokens, and model.block_size = {block_size} is no "
                    "longer: leave it out, or stretch the model first (bonsai stretch)"
                )
            row, marks, cut = row[-block_size - 1 :], marks[-block_size - 1 :].copy(), cut + 1
            marks[0] = False
        ids.append(row)
        asked.append(marks)
        source.append(number)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    return Encoded(
        ids=np.concatenate(ids).astype(np.int32),
        asked=np.concatenate(asked).astype(bool),
        starts=starts,
        source=np.array(source),
        cut=cut,
    )


def prompt_ids(example: Example, tokenizer: Tokenizer) -> np.ndarray:
    """The ids that stand before what is to be said last, as they do in training."""
    parts = [
        encode_said(segment.text, tokenizer) if segment.said else tokenizer.encode(segment.text)
        for segment in example.segments[:-1]
    ]
    return np.concatenate([[end_of_text(tokenizer)], *parts]).astype(np.int64)


def _encode(example: Example, tokenizer: Tokenizer, end: int, prompts: bool) -> tuple[np.ndarray, np.ndarray]:
    parts, marks = [np.array([end])], [np.array([False])]
    for segment in example.segments:
        part = encode_said(segment.text, tokenizer) if segment.said else tokenizer.encode(segment.text)
        parts.append(part)
        marks.append(np.full(len(part), segment.said or prompts))
    if label_token(example.completion) not in tokenizer.special_tokens:
        parts.append(np.array([end]))
        marks.append(np.array([True]))
    return np.concatenate(parts).astype(np.int64), np.concatenate(marks)


def encode_said(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of what is to be said: one special token of that name, if there is one, else those of the text."""
    label = tokenizer.special_tokens.get(label_token(text))
    return tokenizer.encode(text) if label is None else np.array([label])


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that stands before and after each example.

    Raises:
        DataError: there is none.
    """
    if tokenizer.end_of_text is None:
        raise DataError(
            f"examples need a token that ends them, and a '{tokenizer.kind}' tokenizer has none: fine-tune with "
            "`bonsai finetune`, which adds one, or use another, e.g. --data.tokenizer.kind bytes"
        )
    return tokenizer.end_of_text


def tokenizer_for(config: TokenizerConfig, examples: Sequence[Example]) -> Tokenizer:
    """The tokenizer of a configuration, learned from the examples if it has to be; it can end them.

    Raises:
        DataError: it is not there.
    """
    given = given_tokenizer(config)
    if given is not None:
        return given
    texts = [segment.text for example in examples for segment in example.segments]
    if isinstance(config, BpeTokenizerConfig):
        return BpeTokenizer.train(
            texts, config.vocab_size, split=config.split, special=config.special, train_bytes=config.train_bytes
        )
    return with_special(CharTokenizer("".join(texts)), [END_OF_TEXT])
