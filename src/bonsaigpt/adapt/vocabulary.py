"""More tokens for a trained model: what it says to a label or at the end of an answer needs a row of its own."""

from __future__ import annotations

import re

import numpy as np

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import ConfigError, DataError
from bonsaigpt.structure import structures

__all__ = ["grown_vocabulary"]


def grown_vocabulary(
    config: ModelConfig, weights: Arrays, known: Tokenizer, tokenizer: Tokenizer
) -> tuple[ModelConfig, Arrays]:
    """The model of the tokenizer ``known`` with rows for the tokens that ``tokenizer`` has beyond it.

    The row of a new token is the mean of the rows that spell it, in the embedding and in the head: ``<|card_lost|>``
    begins between "card" and "lost", where a model that has read of cards looks for it. What cannot be spelled begins
    at the mean of all rows, whose logit is an ordinary one (Hewitt 2021, "Initializing new word embeddings"). Random
    rows of the trained ones' length, which is six times that of fresh ones, first have to be unlearned.

    Raises:
        ConfigError: embedding or head are made of factors, which have no rows to add.
    """
    before, size = known.vocab_size, tokenizer.vocab_size
    if size <= before:
        return config, weights
    names = ["transformer.wte.weight", *([] if config.tie_embeddings else ["lm_head.weight"])]
    made = structures(config)
    if factored := [name for name in names if made[name].factored]:
        raise ConfigError(f"{factored[0]} is made of factors, which have no rows to add for new tokens: merge it first")
    data = config.model_dump(exclude_none=True, exclude={"preset"}) | {"vocab_size": max(size, config.vocabulary)}
    grown = validate({"model": data}, origin="the grown model").model
    spelled = {id: _spelling(text, known) for text, id in tokenizer.special_tokens.items() if id >= before}
    wider = dict(weights)
    for name in names:
        trained = weights[name][:before]
        rows = np.repeat(trained.mean(axis=0, keepdims=True), grown.vocabulary_rows - before, axis=0)
        for id, ids in spelled.items():
            if len(ids):
                rows[id - before] = trained[ids].mean(axis=0)
        wider[name] = np.concatenate([trained, rows])
    return grown, wider


def _spelling(token: str, tokenizer: Tokenizer) -> np.ndarray:
    """Ids of a special token's words as they stand inside a sentence; none where the tokenizer lacks a character."""
    words = re.sub(r"[\W_]+", " ", token).strip()
    try:
        return tokenizer.encode(f" {words}") if words else np.zeros(0, np.int64)
    except DataError:
        return np.zeros(0, np.int64)
