"""Examples to fine-tune on: from JSON lines to batches whose loss counts what the model is to say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from bonsaigpt.config import ExamplesData, PairsData
from bonsaigpt.data.examples.batches import ExampleBatches, shown_equally
from bonsaigpt.data.examples.encoding import encode_examples, tokenizer_for
from bonsaigpt.data.examples.reading import Example, read_examples
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Say, silent

__all__ = ["example_batches", "split_examples", "two_sides"]


def example_batches(
    config: ExamplesData, *, seed: int, plan: BatchPlan, say: Say = silent, tokenizer: Tokenizer | None = None
) -> ExampleBatches:
    """The batches of examples.

    Args:
        tokenizer: in place of the configuration's.

    Raises:
        DataError: a file that cannot be read, a line that is no example, or nothing left to train or to validate on.
    """
    examples, template = read_examples(config.path, config.template)
    val = read_examples(config.val, template)[0] if config.val is not None else None
    train, val = two_sides(config, examples, val)
    tokenizer = tokenizer or tokenizer_for(config.tokenizer, train)
    sides = [
        encode_examples(side, tokenizer, block_size=plan.block_size, prompts=prompts)
        for side, prompts in ((train, config.prompts), (val, False))
    ]
    for name, side in zip(("training", "validation"), sides, strict=True):
        if side.cut:
            say(f"{side.cut:,} {name} examples are longer than a block of {plan.block_size}: they lose their beginning")
    is_text = all(example.is_text for example in val)
    shown = np.arange(len(sides[0]))
    if config.balance:
        first = np.searchsorted(sides[0].source, np.arange(len(train) + 1)).tolist()  # of the pieces of each
        chosen = shown_equally([example.completion for example in train])
        shown = np.concatenate([np.arange(first[n], first[n + 1]) for n in chosen.tolist()])
    flags = f"{config.pack:d}{config.prompts:d}{config.balance:d}"
    say(
        f"{len(train):,} examples to train on, {len(val):,} to validate on, by the template {template!r}; "
        f"{int(sides[0].asked.sum()):,} of {len(sides[0].ids):,} training tokens count"
    )
    return ExampleBatches.of(
        *sides,
        about=f"{template} {plan.block_size} {flags}",
        tokenizer=tokenizer,
        seed=seed,
        plan=plan,
        pack=config.pack,
        shown=shown,
        exact_match=not is_text,
    )


def two_sides(
    config: ExamplesData | PairsData, examples: list[Example], val: list[Example] | None
) -> tuple[list[Example], list[Example]]:
    """What to train on, and what to validate on: a file of its own, or a share of the first.

    Raises:
        DataError: one of them is empty.
    """
    sides = (examples, val) if val is not None else split_examples(examples, config.val_fraction)
    if not all(sides):
        raise DataError(
            f"{config.path} leaves nothing to {'validate' if sides[0] else 'train'} on when {config.val_fraction:.0%} "
            f"are held out by a hash: give more {config.kind}, or a file to validate on (--val; of train --data.val)"
        )
    return sides


def split_examples(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Those to train on and those held out, by the hash of all that an example gives (or of a plain text): so none is
    on both sides, and which side one is on never depends on the others."""
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        asked = example.prompt or example.completion
        share = int.from_bytes(hashlib.sha256(asked.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
        sides[share < fraction].append(example)
    return sides
