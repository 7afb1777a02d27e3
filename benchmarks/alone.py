"""Trainings whose loss alone counts: one thread each, so their bits depend on no load, several processes at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import Ledger, progress

from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.measure import evaluate
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.schedule import schedule_share

__all__ = ["run_missing", "train_alone"]


def train_alone(config: RunConfig, corpora: Path) -> tuple[int, int, float]:
    """Parameters, training tokens and the final loss over the whole validation split of one run, on one thread."""
    source = open_source(config, corpora)
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    engine = load_engine("torch", device="cpu", threads=1)
    state, tokens = engine.init(config), 0
    for step in range(config.train.steps):
        batch = source.batch_at(step)
        engine.step(state, batch, config=config, share=schedule_share(config, step), step=step)
        tokens += batch.count
    return parameter_count(config.model), tokens, evaluate(engine, engine.model_of(state), source).loss


def run_missing(
    ledger: Ledger,
    jobs: Mapping[str, tuple[Any, ...]],
    run: Callable[..., Any],
    *,
    processes: int,
    text: Callable[[Any], str],
) -> None:
    """``run(*job)`` in a pool for each job, by name, that the ledger does not hold yet; ``text`` of what it gives."""
    missing = {name: job for name, job in jobs.items() if name not in ledger.found}
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    with pool, progress("runs", len(missing)) as advance:
        futures = {pool.submit(run, *job): name for name, job in missing.items()}
        for number, future in enumerate(as_completed(futures), start=1):
            name = futures[future]
            ledger.add(name, future.result())
            advance(number, f"{name}: {text(ledger.found[name])}")
