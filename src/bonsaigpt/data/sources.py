"""From the settings of a run to what gives its batches: a toy, a corpus in some order, or a mixture of corpora."""

from __future__ import annotations

from collections.abc import Callable

from bonsaigpt.config import MixtureData, ReadingData, RunConfig, TaskData
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.documents import document_starts
from bonsaigpt.data.mixture import MixtureBatches
from bonsaigpt.data.packing import packed_rows
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.shards import Corpus
from bonsaigpt.data.toys import task_batches
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError
from bonsaigpt.randomness import key

__all__ = ["source_of"]

Advance = Callable[[str, int, int], None]
"""``advance(what, done, total)``; total 0 means that nobody knows."""


def source_of(
    config: RunConfig,
    corpus_of: Callable[[ReadingData], Corpus],
    *,
    say: Callable[[str], None],
    advance: Advance,
) -> BatchSource:
    """Whatever a run trains on, ready for ``batch_at``.

    Args:
        corpus_of: opens the corpus of some settings, and prepares it first if it is not yet.
    """
    data, plan = config.data, BatchPlan.of(config)
    if isinstance(data, TaskData):
        return task_batches(data, seed=config.seed, plan=plan)
    if not isinstance(data, MixtureData):
        return _corpus_batches(data, corpus_of(data), config.seed, config, advance)
    members = {
        name: _corpus_batches(part.data, corpus_of(part.data), key(config.seed, "part", number), config, advance)
        for number, (name, part) in enumerate(zip(data.names, data.parts, strict=True))
    }
    mixture = MixtureBatches(members=members, weights=tuple(part.weight for part in data.parts), plan=plan)
    seen = mixture.passes(sum(plan.rows(step) for step in range(config.train.steps)) * plan.block_size)
    for name, (share, part) in mixture.parts.items():
        held = part.validation_count()
        say(f"{name}: {share:.2%} of the samples, {seen[name]:.3g} epochs, {held:,} validation targets")
    return mixture


def _corpus_batches(data: ReadingData, corpus: Corpus, seed: int, config: RunConfig, advance: Advance) -> TokenBatches:
    plan, tokenizer = BatchPlan.of(config), corpus.tokenizer
    train = corpus.stream("train")
    packed = None
    if data.document_mask or data.order == "packed":
        end = tokenizer.end_of_text
        if end is None:
            asks = "data.order = 'packed'" if data.order == "packed" else "data.document_mask"
            raise DataError(
                f"{asks} needs to know where documents end, and a '{tokenizer.kind}' tokenizer has no end-of-text "
                "token: use another, e.g. --data.tokenizer.kind bytes"
            )
        if data.order == "packed":
            home = corpus.folder / "train"
            starts = document_starts(train, end, home.with_name("train.documents.bin"), advance)
            packed = packed_rows(starts, block_size=plan.block_size, end_of_text=end, home=home, advance=advance)
    masked = "-documents" if data.document_mask else ""
    return TokenBatches(
        train=train,
        val=corpus.stream("val"),
        tokenizer=tokenizer,
        order=data.order,
        seed=seed,
        plan=plan,
        eval_block_size=config.train.eval_block_size,
        fingerprint=f"{corpus.fingerprint}-{data.order}{masked}-{seed}-{plan.batch_size}",
        document_mask=data.document_mask,
        packed=packed,
    )
