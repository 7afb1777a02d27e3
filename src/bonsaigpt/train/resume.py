"""What may change when a run is continued, and what may not."""

from __future__ import annotations

from pathlib import Path

from bonsaigpt.checkpoint import RunDirectory, split_address
from bonsaigpt.config import LogitsDistill, ModelConfig, RunConfig
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import CheckpointError, ConfigError
from bonsaigpt.kv import read_policy
from bonsaigpt.recipes import flatten

__all__ = ["changes", "check_data", "check_policy", "check_same_function", "check_teacher"]

_FREE = ("about", "data.path", "model.dropout", "optim.", "train.")
_FIXED = ("train.batch_size", "train.memory", "train.batch_ramp", "train.eval_block_size", "optim.matrices.kind")
"""The place of every sample in the data follows from the sizes of all batches, so others would be another run; losses
at another context could not say which checkpoint is the best; the optimizer's saved state fits one kind of update."""


def changes(old: RunConfig, new: RunConfig) -> list[str]:
    """The settings that differ, as ``train.steps: 2000 -> 4000``.

    Raises:
        ConfigError: one of them cannot change in the middle of a run.
    """
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    words: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        if name.startswith(_FIXED) or not name.startswith(_FREE):
            raise ConfigError(
                f"{name} cannot change while a run is continued (it was {was}, not {now}): leave it, or start a new "
                "run from these weights with --init"
            )
        words.append(f"{name}: {was} -> {now}")
    return words


def check_data(fingerprint: str, tokenizer: Tokenizer, source: BatchSource) -> None:
    """Raise ``CheckpointError`` if the data is not what a run of this fingerprint and tokenizer was trained on."""
    if fingerprint != source.fingerprint or tokenizer.to_json() != source.tokenizer.to_json():
        raise CheckpointError(
            "the data is not what this run was trained on (its fingerprint differs): restore the text, score another "
            "one with `bonsai eval RUN --text FILE`, or start a new run from these weights with --init"
        )


def check_same_function(theirs: ModelConfig, ours: ModelConfig, *, origin: str) -> None:
    """Raise ``ConfigError`` if weights of one configuration would compute something else under the other.

    Equal shapes do not suffice: pre- and post-norm, or the two GELUs, have the same parameters.
    """
    # Sizes are checked by the shapes themselves.
    free = {"preset", "dropout", "vocab_size", "vocab_multiple", "block_size", "residual_init"}
    before, after = (flatten(c.model_dump(mode="json", exclude=free)) for c in (theirs, ours))
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            raise ConfigError(
                f"model.{name} is {after.get(name)}, but the weights of {origin} were made with {before.get(name)}: "
                "set it to that"
            )


def check_policy(config: RunConfig) -> None:
    """Refuse a cache policy that cannot be trained with, before anything takes its time.

    Raises:
        ConfigError: ``train.kv`` is no policy, or none that one pass over a row of this model computes.
    """
    if config.train.kv:
        try:
            read_policy(config.train.kv).check_training(config.model)
        except ValueError as error:
            raise ConfigError(f"train.kv = '{config.train.kv}': {error}") from None


def check_teacher(config: RunConfig, source: BatchSource) -> None:
    """Refuse a teacher that cannot teach this model: before anything takes its time.

    Raises:
        CheckpointError: its run or checkpoint is not there, or it has another tokenizer.
        ConfigError: its context is too short, or its stream has another shape and is to be followed.
    """
    distill, ours = config.optim.distill, config.model
    if not isinstance(distill, LogitsDistill):
        return
    place, which = split_address(distill.teacher)
    run = RunDirectory.open(Path(place))
    run.find(which)
    theirs = run.config.model
    if run.tokenizer.to_json() != source.tokenizer.to_json():
        raise CheckpointError(
            f"the teacher {distill.teacher} was trained with another tokenizer than this data has, so its ids mean "
            "other text: choose a teacher of the same data with --optim.distill.teacher"
        )
    if theirs.block_size < ours.block_size and theirs.position.kind != "none":
        raise ConfigError(
            f"the teacher {distill.teacher} has positions for {theirs.block_size} tokens, but model.block_size = "
            f"{ours.block_size}: use that or less"
        )
    if distill.hidden and (theirs.n_embd, theirs.n_layer) != (ours.n_embd, ours.n_layer):
        raise ConfigError(
            f"optim.distill.hidden compares residual streams block by block, but the teacher {distill.teacher} has "
            f"{theirs.n_layer} of width {theirs.n_embd}, and this model {ours.n_layer} of {ours.n_embd}: set it to 0"
        )
