"""From the settings of a run to what gives its batches: a toy, examples, a corpus in some order, or a mixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bonsaigpt.config import ExamplesData, MixtureData, PairsData, ReadingData, RunConfig, TaskData
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.documents import document_starts
from bonsaigpt.data.examples import example_batches
from bonsaigpt.data.examples.pairs import pair_batches
from bonsaigpt.data.indexes import Indexes
from bonsaigpt.data.mixture import MixtureBatches
from bonsaigpt.data.packing import packed_rows
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.shards import Corpus
from bonsaigpt.data.toys import task_batches
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance, Say
from bonsaigpt.randomness import key

__all__ = ["source_of"]


def source_of(
    config: RunConfig,
    corpus_of: Callable[[ReadingData], Corpus],
    corpora: Path,
    *,
    say: Say,
    advance: Advance,
) -> BatchSource:
    """Whatever a run trains on, ready for ``batch_at``.

    Args:
        corpus_of: opens the corpus of some settings, and prepares it first if it is not yet.
        corpora: folder for indexes of corpora that lie where nothing can be written.
    """
    data, plan = config.data, BatchPlan.of(config)

    def batches(reading: ReadingData, seed: int) -> TokenBatches:
        corpus = corpus_of(reading)
        return _corpus_batches(reading, corpus, seed, config, Indexes.of(corpus, corpora, say), advance)

    if isinstance(data, TaskData):
        return task_batches(data, seed=config.seed, plan=plan)
    if isinstance(data, ExamplesData):
        return example_batches(data, seed=config.seed, plan=plan, say=say)
    if isinstance(data, PairsData):
        return pair_batches(data, seed=config.seed, plan=plan, say=say)
    if not isinstance(data, MixtureData):
        return batches(data, config.seed)
    members = {
        name: batches(part.data, key(config.seed, "part", number))
        for number, (name, part) in enumerate(zip(data.names, data.parts, strict=True))
    }
    mixture = MixtureBatches(members=members, weights=tuple(part.weight for part in data.parts), plan=plan)
    seen = mixture.passes(sum(plan.rows(step) for step in range(config.train.steps)) * plan.block_size)
    for name, (share, part) in mixture.parts.items():
        held = part.validation_count()
        say(f"{name}: {share:.2%} of the samples, {seen[name]:.3g} epochs, {held:,} validation targets")
    return mixture


def _corpus_batches(
    data: ReadingData, corpus: Corpus, seed: int, config: RunConfig, indexes: Indexes, advance: Advance
) -> TokenBatches:
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
            starts = document_starts(train, end, indexes, advance)
            packed = packed_rows(starts, block_size=plan.block_size, end_of_text=end, indexes=indexes, advance=advance)
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
