"""Trainings whose loss alone counts: one thread each, so their bits depend on no load, several processes at a time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from common import Ledger, progress

from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.measure import evaluate
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.schedule import schedule_share

__all__ = ["Trained", "train_all", "train_alone"]


class Trained(NamedTuple):
    """What came of a run."""

    parameters: int
    tokens: int
    """Targets that it was trained on."""
    loss: float
    """At the end, over the whole validation split, nats a token."""


def train_alone(config: RunConfig, corpora: Path) -> Trained:
    """One run, on one thread."""
    source = open_source(config, corpora)
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    engine = load_engine("torch", device="cpu", threads=1)
    state, tokens = engine.init(config), 0
    for step in range(config.train.steps):
        batch = source.batch_at(step)
        engine.step(state, batch, config=config, share=schedule_share(config, step), step=step)
        tokens += batch.count
    loss = evaluate(engine, engine.model_of(state), source).loss
    return Trained(parameter_count(config.model), tokens, round(loss, 5))


def train_all(runs: Mapping[str, RunConfig], done: Path, *, corpora: Path, processes: int) -> dict[str, Trained]:
    """What came of each run on one text, by its name. Those that the ledger ``done`` lacks are trained in a pool, in
    the given order."""
    ledger = Ledger(done)
    first = next(iter(runs.values()))
    text = open_source(first, corpora).fingerprint.partition("-")[0]  # and the tokens are on the disk before the pool
    settings = {name: _settings(config, text) for name, config in runs.items()}
    missing = {name: config for name, config in runs.items() if ledger.find(settings[name]) is None}
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    with pool, progress("runs", len(missing)) as advance:
        futures = {pool.submit(train_alone, config, corpora): name for name, config in missing.items()}
        for number, future in enumerate(as_completed(futures), start=1):
            name, found = futures[future], future.result()
            ledger.add(name, settings[name], found)
            advance(number, f"{name}: {found.loss:.4f}")
    return {name: Trained(*ledger.find(settings[name])) for name in runs}


def _settings(config: RunConfig, text: str) -> dict[str, Any]:
    """All that a loss depends on: the text by its fingerprint, wherever it lies."""
    settings = config.model_dump(mode="json", exclude={"about": True, "data": {"path"}})
    return settings | {"text": text}
