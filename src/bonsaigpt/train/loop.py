"""The loop: batch, step, now and then an evaluation and a checkpoint. It knows no callback by name.

Everything that changes the weights is a function of the configuration and the step number, so how often the loop
logs, evaluates, samples or saves cannot change what it learns, and a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.config import RunConfig
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine, Metrics
from bonsaigpt.errors import BonsaiError
from bonsaigpt.generate import generate_text
from bonsaigpt.measure import Evaluation, evaluate, flops_per_token
from bonsaigpt.sampling import Sampling
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.events import EvalEvent, Listener, LogEvent, Outcome, ProgressEvent, StartEvent, StepEvent
from bonsaigpt.train.interrupt import Interrupt
from bonsaigpt.train.memory import peak_memory_mb
from bonsaigpt.train.schedule import learning_rate

__all__ = ["start_state", "train"]


def train(
    config: RunConfig,
    *,
    engine: Engine,
    source: BatchSource,
    run: RunDirectory,
    environment: dict[str, Any],
    listeners: Sequence[Listener] = (),
    resume: Checkpoint | None = None,
) -> Outcome:
    """Train until ``config.train.steps`` or a signal; the last checkpoint is on the disk when this returns.

    Args:
        resume: a checkpoint to go on from: weights, moments and step count; of step 0 it has the weights alone.
    """
    with Interrupt() as interrupt, ExitStack() as closing:
        for listener in listeners:
            closing.callback(listener.close)
        trainer = _Trainer(config, engine, source, run, listeners, resume)
        return trainer.run_through(interrupt, environment)


def start_state(source: BatchSource) -> dict[str, Any]:
    """The ``state.json`` of a run that has not taken a step."""
    return {
        "step": 0,
        "tokens": 0,
        "seconds": 0.0,
        "best_loss": None,
        "best_step": -1,
        "evaluation": None,
        "keep": False,
        "data": source.fingerprint,
    }


class _Trainer:
    """What one call of ``train`` keeps in hand."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        source: BatchSource,
        run: RunDirectory,
        listeners: Sequence[Listener],
        resume: Checkpoint | None,
    ) -> None:
        self.config, self.engine, self.source = config, engine, source
        self.run, self.listeners = run, listeners
        saved = resume.state if resume is not None else start_state(source)
        self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]
        self.best_step = saved["best_step"]
        self.best_loss = saved["best_loss"] if saved["best_loss"] is not None else float("inf")
        self.evaluation = Evaluation.from_dict(saved["evaluation"]) if saved["evaluation"] is not None else None
        if resume is None:
            self.state = engine.init(config)
        else:
            self.state = engine.restore(config, resume.model, resume.optimizer, step=self.step)
        self.saved_step = self.step if resume is not None else -1

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
        elif self.evaluation is not None:  # a kill may have come before anybody heard of it
            self._tell_evaluation()
        started, timed_tokens = time.perf_counter(), self.tokens
        metrics: Metrics | None = None
        while self.step < train.steps and interrupt.name is None:
            lr = learning_rate(config, self.step)
            batch = self.source.batch_at(self.step)
            metrics = self.engine.step(self.state, batch, config=config, lr=lr, step=self.step)
            self.step += 1
            self.tokens += batch.count
            self.evaluation = None  # it was of other weights
            self._tell("on_step", StepEvent(step=self.step, tokens=self.tokens))

            last = self.step == train.steps
            due = self.step % train.eval_interval == 0 or last
            if self.step % train.log_interval == 0 or due:
                host = metrics.host()  # waits for the device, so that the clock is read after the work
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                speed = (self.tokens - timed_tokens) / elapsed
                self._tell(
                    "on_log",
                    LogEvent(
                        step=self.step,
                        tokens=self.tokens,
                        seconds=self.seconds,
                        lr=lr,
                        tokens_per_second=speed,
                        tflops=speed * flops_per_token(config.model) / 1e12,
                        memory_mb=peak_memory_mb(),
                        **host,
                    ),
                )
                if due:
                    self._evaluate_and_save()
                started, timed_tokens = time.perf_counter(), self.tokens
            if self._is_kept() and self.saved_step != self.step:
                self._save()
        if metrics is not None and self.saved_step != self.step:  # a signal came between two evaluations
            self._refuse_divergence("training", metrics.host()["loss"])  # it must not become `last`
            self.seconds += time.perf_counter() - started
            self._save()
        reason = interrupt.name if interrupt.name is not None and self.step < train.steps else "done"
        outcome = Outcome(step=self.step, reason=reason, best_loss=self.best_loss, best_step=self.best_step)
        self._tell("on_stop", outcome)
        return outcome

    def _evaluate_and_save(self) -> None:
        model = self.engine.model_of(self.state)
        self.evaluation = evaluate(self.engine, model, self.source, advance=self._follow)
        self._refuse_divergence("validation", self.evaluation.loss)
        if self.evaluation.loss < self.best_loss:
            self.best_loss, self.best_step = self.evaluation.loss, self.step
        if self.step > 0:
            self._save()  # before any listener may fail
        self._tell_evaluation()

    def _tell_evaluation(self) -> None:
        assert self.evaluation is not None
        self._tell(
            "on_eval",
            EvalEvent(
                step=self.step,
                tokens=self.tokens,
                seconds=self.seconds,
                evaluation=self.evaluation,
                is_best=self.best_step == self.step,
                write=self._write_text,
            ),
        )

    def _refuse_divergence(self, split: str, loss: float) -> None:
        if loss < float("inf"):  # false for NaN
            return
        saved = f"The last good checkpoint is {self.run.path}@last; try" if self.saved_step > 0 else "Try"
        raise BonsaiError(
            f"training diverged: the {split} loss at step {self.step} is {loss}. {saved} a lower --optim.lr or a "
            "longer --optim.schedule.warmup"
        )

    def _is_kept(self) -> bool:
        every = self.config.train.keep_every
        return every > 0 and self.step % every == 0

    def _follow(self, what: str, done: int, total: int) -> None:
        self._tell("on_progress", ProgressEvent(what=what, done=done, total=total))

    def _save(self) -> None:
        model, optimizer = self.engine.arrays(self.state)
        state = start_state(self.source) | {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "evaluation": self.evaluation.as_dict() if self.evaluation is not None else None,
            "keep": self._is_kept(),
        }
        self.run.save(Checkpoint(model=model, optimizer=optimizer, state=state))
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
