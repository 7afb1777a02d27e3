"""Objectives that ask the model itself: preferences and rewards, as weights on the targets of an ordinary batch.

Both gradients are weighted sums of the gradients of log-likelihoods, so the step is the same as ever. Of a pair with
the margin m = beta (log p(chosen) - log p(rejected)), each less that of the reference, the gradient of
-log sigmoid(m) is beta sigmoid(-m) times that of log p(rejected) - log p(chosen) (Rafailov et al. 2023, section 4): so
the targets of the chosen answer weigh beta sigmoid(-m), and those of the rejected one the negative of it. A token that
the model sampled weighs what is right from it on, for it cannot change what stands before, less the mean of the same in
the other answers to the problem. Sampling is a function of (seed, step), so a resumed run asks for the same answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from bonsaigpt.checkpoint import RunDirectory, split_address
from bonsaigpt.config import PreferenceObjective, RewardObjective, RunConfig
from bonsaigpt.data.batches import IGNORE, Batch, BatchSource
from bonsaigpt.data.examples.pairs import PairBatches
from bonsaigpt.engines import Engine
from bonsaigpt.errors import CheckpointError, DeviceError
from bonsaigpt.measure import Evaluation
from bonsaigpt.randomness import key, uniform

__all__ = ["Objective", "objective_of", "preferred", "rewarded"]

Follow: TypeAlias = Callable[[str, int, int], None]


class Objective(Protocol):
    """What asks the model of the moment."""

    def weighted(self, model: Any, batch: Batch, step: int) -> Batch:
        """The batch that is learned from, of the data's."""
        ...

    def judged(self, model: Any, evaluation: Evaluation, advance: Follow) -> Evaluation:
        """The evaluation, with what the objective knows of the model."""
        ...


def objective_of(config: RunConfig, engine: Engine, source: BatchSource) -> Objective | None:
    """What makes a run's batches of its data's; None where these are learned from as they are.

    Raises:
        DeviceError: another engine than torch, or several processes.
        CheckpointError: the reference is not there, or has another tokenizer.
    """
    objective = config.optim.objective
    if objective.kind == "likelihood":
        return None
    if engine.name != "torch" or engine.world.size > 1:
        raise DeviceError(f"optim.objective.kind = '{objective.kind}' needs the torch engine, and one process")
    if isinstance(objective, PreferenceObjective):
        assert isinstance(source, PairBatches)
        return _Preference(engine, source, _reference(objective.reference, engine, source), objective.beta)
    assert isinstance(objective, RewardObjective)
    return _Reward(engine, objective, config.seed)


@dataclass(frozen=True)
class _Preference:
    engine: Engine
    source: PairBatches
    reference: Any
    beta: float

    def weighted(self, model: Any, batch: Batch, step: int) -> Batch:
        ours, theirs = (_row_sums(self.engine, m, batch) for m in (model, self.reference))
        return preferred(batch, ours, theirs, beta=self.beta)

    def judged(self, model: Any, evaluation: Evaluation, advance: Follow) -> Evaluation:
        found: list[np.ndarray] = []
        done, total = 0, len(self.source.chosen.val)
        for batch, theirs in zip(self.source.validation_pairs(), self._validated, strict=True):
            found.append(_margins(_row_sums(self.engine, model, batch), theirs, self.beta))
            advance("comparing pairs", done := done + len(found[-1]), total)
        margins_P = np.concatenate(found)
        ordered = float((np.sign(margins_P) + 1).mean() / 2)
        return replace(evaluation, margin=float(margins_P.mean()), ordered=ordered)

    @cached_property
    def _validated(self) -> list[np.ndarray]:
        """What the reference, which does not change, says of the pairs to validate on."""
        return [_row_sums(self.engine, self.reference, batch) for batch in self.source.validation_pairs()]


@dataclass(frozen=True)
class _Reward:
    engine: Engine
    objective: RewardObjective
    seed: int

    def weighted(self, model: Any, batch: Batch, step: int) -> Batch:
        samples, temperature = self.objective.samples, self.objective.temperature
        problems = batch.first(len(batch.tokens_BT) // samples)
        noise = key(self.seed, "reward", step)
        return rewarded(self.engine, model, problems, samples=samples, temperature=temperature, noise=noise)

    def judged(self, model: Any, evaluation: Evaluation, advance: Follow) -> Evaluation:
        return evaluation


def _reference(address: str, engine: Engine, source: BatchSource) -> Any:
    place, which = split_address(address)
    run = RunDirectory.open(Path(place))
    if run.tokenizer.to_json() != source.tokenizer.to_json():
        raise CheckpointError(
            f"the reference {address} has another tokenizer than this data: choose one of the same with "
            "--optim.objective.reference"
        )
    return engine.model(run.config.model, run.load(which, optimizer=False).model)


def _row_sums(engine: Engine, model: Any, batch: Batch) -> np.ndarray:
    """The log-likelihood of the targets of each row, (B,)."""
    scores = engine.target_scores(model, batch)
    return -np.bincount(scores.rows_N, weights=scores.losses_N, minlength=len(batch.tokens_BT))


def _margins(ours_B: np.ndarray, theirs_B: np.ndarray, beta: float) -> np.ndarray:
    """Of each pair of rows, (P,)."""
    added_B = ours_B - theirs_B
    return beta * (added_B[0::2] - added_B[1::2])


def preferred(batch: Batch, ours_B: np.ndarray, theirs_B: np.ndarray, *, beta: float) -> Batch:
    """A batch of pairs, weighted for one step of DPO.

    Args:
        ours_B: log-likelihoods of the rows under the model, chosen and rejected by turns.
        theirs_B: the same under the reference.
    """
    margin_P = _margins(ours_B, theirs_B, beta)
    pull_P = beta / (1.0 + np.exp(np.clip(margin_P, -60.0, 60.0)))
    weight_B = np.stack([pull_P, -pull_P], axis=1).reshape(-1) * batch.count / len(pull_P)  # a mean over pairs
    weights_BT = np.where(batch.targets_BT != IGNORE, weight_B[:, None], 0.0).astype(np.float32)
    return replace(batch, weights_BT=weights_BT)


def rewarded(engine: Engine, model: Any, problems: Batch, *, samples: int, temperature: float, noise: int) -> Batch:
    """Some answers of the model's to each problem; a token weighs how much more is right from it on, as a share of the
    answer, than in the others (reward to go, with a baseline that leaves one out: Kool et al. 2019, equation 8).

    Args:
        problems: one a row, with the right answer; all targets stand at its end.
        noise: key of the random numbers.
    """
    tokens_BT = np.repeat(problems.tokens_BT, samples, axis=0)
    right_BT = np.repeat(problems.targets_BT, samples, axis=0)
    rows, length = right_BT.shape
    first = int(np.flatnonzero((right_BT != IGNORE).all(axis=0))[0])
    said_BT = right_BT.copy()
    cache = engine.cache(model, batch=rows)
    given = tokens_BT[:, : first + 1]
    for place in range(first, length):
        logits_BV = engine.next_logits(model, given, cache)
        draws = uniform(key(noise, place), np.arange(logits_BV.size)).reshape(logits_BV.shape)
        gumbel_BV = -np.log(-np.log(np.clip(draws, 1e-300, 1.0 - 1e-16)))
        said_BT[:, place] = (logits_BV / temperature + gumbel_BV).argmax(axis=1)
        given = said_BT[:, place : place + 1]
    answers = slice(first, length)
    right_BA = said_BT[:, answers] == right_BT[:, answers]
    to_go = right_BA[:, ::-1].cumsum(axis=1)[:, ::-1].reshape(-1, samples, length - first) / (length - first)
    others = (to_go.sum(axis=1, keepdims=True) - to_go) / (samples - 1)
    weights_BT = np.zeros(right_BT.shape, np.float32)
    weights_BT[:, answers] = (to_go - others).reshape(rows, -1)
    inputs_BT = tokens_BT.copy()
    inputs_BT[:, first + 1 :] = said_BT[:, first:-1]
    count = rows * (length - first)
    return Batch(tokens_BT=inputs_BT, targets_BT=said_BT, count=count, weights_BT=weights_BT)
