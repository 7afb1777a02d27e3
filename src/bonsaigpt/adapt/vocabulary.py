"""More tokens for a trained model: what it says to a label or at the end of an answer needs a row of its own."""

from __future__ import annotations

import numpy as np

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.errors import ConfigError
from bonsaigpt.randomness import generator
from bonsaigpt.structure import structures

__all__ = ["grown_vocabulary"]


def grown_vocabulary(
    config: ModelConfig, weights: Arrays, known: int, size: int, *, seed: int
) -> tuple[ModelConfig, Arrays]:
    """The model with rows for ``size`` tokens, of which the tokenizer had ``known`` so far.

    New rows of the embedding and of the head are normal, with the root mean square of the trained ones: GPT-2's 0.02 is
    what rows begin with, not what they have become, and a row too short could not be chosen.

    Raises:
        ConfigError: embedding or head are made of factors, which have no rows to add.
    """
    if size <= known:
        return config, weights
    names = ["transformer.wte.weight", *([] if config.tie_embeddings else ["lm_head.weight"])]
    made = structures(config)
    if factored := [name for name in names if made[name].factored]:
        raise ConfigError(f"{factored[0]} is made of factors, which have no rows to add for new tokens: merge it first")
    data = config.model_dump(exclude_none=True, exclude={"preset"}) | {"vocab_size": max(size, config.vocabulary)}
    grown = validate({"model": data}, origin="the grown model").model
    wider = dict(weights)
    for name in names:
        trained = weights[name][:known]
        spread = float(np.sqrt(np.mean(np.square(trained, dtype=np.float64))))
        draws = generator(seed, "grown", name).standard_normal((grown.vocabulary_rows - known, config.n_embd))
        wider[name] = np.concatenate([trained, (spread * draws).astype(trained.dtype)])
    return grown, wider
