"""The loop: batch, step, now and then an evaluation and a checkpoint. It knows no callback by name.

Everything that changes the weights is a function of the configuration and the step number, so how often the loop
logs, evaluates, samples or saves cannot change what it learns, and a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bonsaigpt.checkpoint import Arrays, Checkpoint, RunDirectory
from bonsaigpt.config import RunConfig
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.errors import BonsaiError
from bonsaigpt.generate import generate_text
from bonsaigpt.measure import evaluate
from bonsaigpt.sampling import Sampling
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.events import EvalEvent, Listener, LogEvent, ProgressEvent, StartEvent, StepEvent, StopEvent
from bonsaigpt.train.interrupt import Interrupt
from bonsaigpt.train.memory import peak_memory_mb
from bonsaigpt.train.schedule import learning_rate

__all__ = ["Outcome", "train"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of ``train`` ended."""

    step: int
    reason: str
    """``done``, or the name of the signal."""
    best_loss: float
    best_step: int


def train(
    config: RunConfig,
    *,
    engine: Engine,
    source: BatchSource,
    run: RunDirectory,
    environment: dict[str, Any],
    listeners: Sequence[Listener] = (),
    init: Arrays | None = None,
    resume: Checkpoint | None = None,
) -> Outcome:
    """Train until ``config.train.steps`` or a signal; the last checkpoint is on the disk when this returns.

    Args:
        init: weights to start from; the optimizer and the step count start afresh.
        resume: a checkpoint to go on from, optimizer, step count and all.
    """
    with Interrupt() as interrupt, ExitStack() as closing:
        for listener in listeners:
            closing.callback(listener.close)
        trainer = _Trainer(config, engine, source, run, listeners, init, resume)
        return trainer.run_through(interrupt, environment)


class _Trainer:
    """What one call of ``train`` keeps in hand."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        source: BatchSource,
        run: RunDirectory,
        listeners: Sequence[Listener],
        init: Arrays | None,
        resume: Checkpoint | None,
    ) -> None:
        self.config, self.engine, self.source, self.run, self.listeners = (
            config,
            engine,
            source,
            run,
            listeners,
        )
        if resume is None:
            self.state = engine.init(config, init)
            self.step, self.tokens, self.seconds = 0, 0, 0.0
            self.best_loss, self.best_step = float("inf"), -1
        else:
            saved = resume.state
            self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]
            self.best_loss, self.best_step = saved["best_loss"], saved["best_step"]
            self.state = engine.restore(config, resume.model, resume.optimizer, step=self.step)
        self.saved_step = self.step if resume is not None else -1
        self.seed_makes_start = init is None

    def run_through(self, interrupt: Interrupt, environment: dict[str, Any]) -> Outcome:
        """All steps that are left."""
        config, train = self.config, self.config.train
        self._tell(
            "on_start",
            StartEvent(
                run=self.run,
                config=config,
                environment=environment,
                step=self.step,
                parameters=parameter_count(config.model),
            ),
        )
        if self.step == 0:
            self._evaluate_and_save()
        started, timed_tokens = time.perf_counter(), self.tokens
        while self.step < train.steps and interrupt.name is None:
            lr = learning_rate(config, self.step)
            batch = self.source.batch_at(self.step)
            metrics = self.engine.step(self.state, batch, config=config, lr=lr, step=self.step)
            self.step += 1
            self.tokens += batch.count
            self._tell("on_step", StepEvent(step=self.step, tokens=self.tokens))

            last = self.step == train.steps
            due = self.step % train.eval_interval == 0 or last
            if self.step % train.log_interval == 0 or due:
                host = metrics.host()  # waits for the device, so that the clock is read after the work
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                self._tell(
                    "on_log",
                    LogEvent(
                        step=self.step,
                        tokens=self.tokens,
                        seconds=self.seconds,
                        lr=lr,
                        tokens_per_second=(self.tokens - timed_tokens) / elapsed,
                        memory_mb=peak_memory_mb(),
                        **host,
                    ),
                )
                if due:
                    self._evaluate_and_save()
                started, timed_tokens = time.perf_counter(), self.tokens
        if self.saved_step != self.step:  # a signal came between two evaluations
            self.seconds += time.perf_counter() - started
            self._save()
        reason = interrupt.name if interrupt.name is not None and self.step < train.steps else "done"
        outcome = Outcome(step=self.step, reason=reason, best_loss=self.best_loss, best_step=self.best_step)
        self._tell("on_stop", StopEvent(**vars(outcome)))
        return outcome

    def _evaluate_and_save(self) -> None:
        began = time.perf_counter()
        model = self.engine.model_of(self.state)
        evaluation = evaluate(self.engine, model, self.source, advance=self._follow)
        spent = time.perf_counter() - began
        if not evaluation.loss < float("inf"):  # NaN as well
            raise BonsaiError(
                f"training diverged: the validation loss at step {self.step} is {evaluation.loss}. The last good "
                f"checkpoint is {self.run.path}@last; try a lower --optim.lr or a longer --optim.schedule.warmup"
            )
        is_best = evaluation.loss < self.best_loss
        if is_best:
            self.best_loss, self.best_step = evaluation.loss, self.step
        if self.step > 0 or not self.seed_makes_start:  # the weights of another run cannot be made again
            self._save()  # before any listener may fail
        self._tell(
            "on_eval",
            EvalEvent(
                step=self.step,
                tokens=self.tokens,
                seconds=self.seconds,
                evaluation=evaluation,
                eval_seconds=spent,
                is_best=is_best,
                write=self._write_text,
            ),
        )

    def _follow(self, what: str, done: int, total: int) -> None:
        self._tell("on_progress", ProgressEvent(what=what, done=done, total=total))

    def _save(self) -> None:
        model, optimizer = self.engine.arrays(self.state)
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "data": self.source.fingerprint,
        }
        self.run.save(
            Checkpoint(model=model, optimizer=optimizer, state=state), keep_every=self.config.train.keep_every
        )
        self.saved_step = self.step

    def _write_text(self, prompt: str, tokens: int) -> str:
        [text] = generate_text(
            self.engine,
            self.engine.model_of(self.state),
            self.source.tokenizer,
            prompt,
            tokens=tokens,
            sampling=Sampling(temperature=0.8, seed=self.config.seed),
        )
        return text

    def _tell(self, hook: str, event: Any) -> None:
        for listener in self.listeners:
            getattr(listener, hook)(event)
