"""The loop: batch, step, now and then an evaluation and a checkpoint. It knows no callback by name.

Everything that changes the weights is a function of the configuration and the step number, so how often the loop
logs, evaluates, samples or saves cannot change what it learns, and a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.config import ModelConfig, RunConfig
from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.engines import Engine, Metrics
from bonsaigpt.errors import DivergenceError
from bonsaigpt.generate import generate_text
from bonsaigpt.measure import Evaluation, evaluate, flops_per_token
from bonsaigpt.measure.health import Health, look_for
from bonsaigpt.sampling import Sampling
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.events import (
    EvalEvent,
    HealthEvent,
    Listener,
    LogEvent,
    Outcome,
    ProgressEvent,
    RollbackEvent,
    StartEvent,
    StepEvent,
)
from bonsaigpt.train.interrupt import Interrupt
from bonsaigpt.train.memory import peak_memory_mb
from bonsaigpt.train.objectives import objective_of
from bonsaigpt.train.schedule import learning_rate, schedule_share
from bonsaigpt.train.watch import LOOK, Watch, diagnosis, nothing_learned

__all__ = ["last_checkpoint", "start_state", "state_before", "train"]


def train(
    config: RunConfig,
    *,
    engine: Engine,
    source: BatchSource,
    run: RunDirectory,
    environment: dict[str, Any],
    listeners: Sequence[Listener] = (),
    resume: Path | None = None,
) -> Outcome:
    """Train until ``config.train.steps`` or a signal; the last checkpoint is on the disk when this returns.

    Args:
        listeners: who hears of it; of several processes that train together, the main one alone should have any.
        resume: the folder of a checkpoint to go on from; of step 0 it has the weights alone.
    """
    with Interrupt() as interrupt, ExitStack() as closing:
        for listener in listeners:
            closing.callback(listener.close)
        closing.callback(engine.settle)
        trainer = _Trainer(config, engine, source, run, listeners, resume)
        return trainer.run_through(interrupt, environment)


def start_state(source: BatchSource) -> dict[str, Any]:
    """The ``state.json`` of a run that has not taken a step."""
    return state_before(source.fingerprint)


def state_before(data: str) -> dict[str, Any]:
    """The ``state.json`` of a run that has not taken a step, on data of that fingerprint."""
    return {
        "step": 0,
        "tokens": 0,
        "seconds": 0.0,
        "best_loss": None,
        "best_step": -1,
        "best_badness": None,
        "evaluation": None,
        "keep": False,
        "rollbacks": 0,
        "watch": None,
        "data": data,
    }


def last_checkpoint(engine: Engine, run: RunDirectory) -> Path | None:
    """The folder of the newest whole checkpoint, the same for all processes; None if there is none yet."""
    engine.settle()

    def last() -> str | None:
        folder = run.last()
        return None if folder is None else str(folder)

    found = engine.world.on_main(last)
    return None if found is None else Path(found)


def _watch(config: RunConfig) -> Watch:
    return Watch(config.train.guard, descends=config.optim.objective.descends)


@dataclass
class _Pace:
    """The work since the last line of metrics, and the time that it took: evaluating and saving are not in it."""

    seconds: float = 0.0
    tokens: int = 0
    work: Counter[int] = field(default_factory=Counter[int])
    """Positions computed, by the length of their rows."""
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = time.perf_counter()

    def add(self, batch: Batch) -> None:
        self.tokens += batch.count
        self.work[batch.tokens_BT.shape[1]] += batch.tokens_BT.size

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        spent, self.started = now - self.started, now
        self.seconds += spent
        return spent

    def flops(self, config: ModelConfig) -> int:
        return sum(n * flops_per_token(config, length=length) for length, n in self.work.items())


class _Trainer:
    """What one call of ``train`` keeps in hand."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        source: BatchSource,
        run: RunDirectory,
        listeners: Sequence[Listener],
        resume: Path | None,
    ) -> None:
        self.config, self.engine, self.source = config, engine, source
        self.run, self.listeners = run, listeners
        self.objective = objective_of(config, engine, source)
        self.signal = 0
        self.batches, self.watch, self.rollbacks = source, _watch(config), 0
        self._go_to(resume)

    def _go_to(self, saved: Path | None) -> None:
        """Take everything from a checkpoint, or start at step 0."""
        state = read_state(saved) if saved is not None else start_state(self.source)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.best_step = state["best_step"]
        self.best_loss = state["best_loss"] if state["best_loss"] is not None else float("inf")
        self.best_badness = state.get("best_badness") or [1.0, self.best_loss]
        self.evaluation = Evaluation.from_dict(state["evaluation"]) if state["evaluation"] is not None else None
        if state["watch"] is not None:
            self.watch.load(state["watch"])
        self._reorder(max(self.rollbacks, state["rollbacks"]))
        if saved is None:
            self.state = self.engine.init(self.config)
        else:
            self.state = self.engine.load(self.config, saved)
        self.saved_step = self.step if saved is not None else -1

    def _reorder(self, rollbacks: int) -> None:
        self.rollbacks = rollbacks
        self.batches = self.source.reordered(rollbacks) if rollbacks else self.source

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
            self._tell_evaluation(self.engine.model_of(self.state))
        pace = _Pace()
        metrics: Metrics | None = None
        while self.step < train.steps and not self._out_of_patience():
            self.signal = self.engine.world.agree(interrupt.number)
            if self.signal:
                break
            batch = self.batches.batch_at(self.step)
            if self.objective is not None:
                batch = self.objective.weighted(self.engine.model_of(self.state), batch, self.step)
            share = schedule_share(config, self.step)
            look = look_for(config.model, train.health) if self._is_looked_at() else None
            metrics = self.engine.step(self.state, batch, config=config, share=share, step=self.step, look=look)
            self.step += 1
            self.tokens += batch.count
            pace.add(batch)
            self.evaluation = None  # it was of other weights
            self._tell("on_step", StepEvent(step=self.step, tokens=self.tokens))
            if (figures := metrics.health()) is not None:
                self._tell("on_health", HealthEvent(health=Health.of(figures, config.model, step=self.step)))

            due = self.step % train.eval_interval == 0 or self.step == train.steps
            is_logged, is_looked_at = due or self.step % train.log_interval == 0, due or self.step % LOOK == 0
            if is_logged or is_looked_at:
                host = metrics.host()  # waits for the device, so that the clock is read after the work
                self.seconds += pace.lap()
                if is_logged:
                    self._tell_figures(host, pace)
                    pace = _Pace()
                trouble = self._trouble(host) if is_looked_at else None
                if due and trouble is None:
                    trouble = self._evaluate_and_save(host["loss"])
                if trouble is not None:
                    self._go_back(trouble)
                    metrics, pace = None, _Pace()
                pace.started = time.perf_counter()
            if metrics is not None and self._is_kept() and self.saved_step != self.step:
                self._save_between(metrics, pace)
        if metrics is not None and self.saved_step != self.step:  # a signal came between two evaluations
            self._save_between(metrics, pace)
        self.engine.settle()
        outcome = Outcome(
            step=max(0, self.saved_step),
            reason=self._reason(),
            best_loss=self.best_loss,
            best_step=self.best_step,
            remark=self._remark(metrics),
        )
        self._tell("on_stop", outcome)
        return outcome

    def _reason(self) -> str:
        if self.signal:
            return signal.Signals(self.signal).name
        return "done" if self.step == self.config.train.steps else "patience"

    def _out_of_patience(self) -> bool:
        train = self.config.train
        return 0 < train.patience * train.eval_interval <= self.step - max(0, self.best_step)

    def _remark(self, metrics: Metrics | None) -> str | None:
        if metrics is None or self.evaluation is None:  # nothing was trained, or a signal stopped it
            return None
        return nothing_learned(
            self.best_step,
            vocabulary=self.source.tokenizer.vocab_size,
            training_loss=metrics.host()["loss"],
            validation_loss=self.evaluation.loss,
            run=self.run.path,
        )

    def _evaluate_and_save(self, training_loss: float = math.nan) -> str | None:
        """Evaluate, save and tell; or, in words, why these weights must not be saved."""
        model = self.engine.model_of(self.state)
        evaluation = evaluate(
            self.engine,
            model,
            self.source,
            advance=self._follow,
            memory=(self.config.model, self.config.train.memory),
        )
        if self.objective is not None:
            evaluation = self.objective.judged(model, evaluation, self._follow)
        if self.step > 0 and self.watch.is_lost(evaluation.loss, training_loss=training_loss):
            return f"the validation loss is {evaluation.loss:.3g}, the training loss was {self.watch.lowest:.3g}"
        self.evaluation = evaluation
        badness = list(evaluation.badness(self.config.train.best))
        if badness < self.best_badness:
            self.best_loss, self.best_badness, self.best_step = evaluation.loss, badness, self.step
        if self.step > 0:
            self._save()  # before any listener may fail
        self._tell_evaluation(model)
        return None

    def _save_between(self, metrics: Metrics, pace: _Pace) -> None:
        """Save weights that nobody has evaluated, unless they are in trouble: then they must not become `last`."""
        host = metrics.host()
        self.seconds += pace.lap()
        if self.watch.may_save(loss=host["loss"], skipped_in_a_row=host["skipped_in_a_row"]):
            self._save()
        pace.started = time.perf_counter()

    def _trouble(self, host: dict[str, float]) -> str | None:
        # At an evaluation between two looks a copy judges: what the run does later does not depend on when it was.
        watch = self.watch if self.step % LOOK == 0 else replace(self.watch)
        return watch.trouble(loss=host["loss"], skipped_in_a_row=host["skipped_in_a_row"])

    def _go_back(self, why: str) -> None:
        """To the last good checkpoint, or the beginning, with the data in another order.

        Raises:
            DivergenceError: it went back often enough; the last good checkpoint is on the disk.
        """
        noticed, seconds, rollbacks = self.step, self.seconds, self.rollbacks
        good = last_checkpoint(self.engine, self.run)
        if rollbacks >= self.config.train.guard.rollbacks:
            saved = "None was saved"
            if good is not None:
                saved = f"The last good checkpoint is {self.run.path}@last, step {read_state(good)['step']}"
            rate = learning_rate(self.config, noticed - 1)
            raise DivergenceError(diagnosis(self.config, step=noticed, why=why, rate=rate, last_good=saved))
        self.rollbacks = rollbacks + 1
        self.watch = _watch(self.config)
        self._go_to(good)
        self.seconds = seconds  # the time was spent all the same
        self._tell("on_rollback", RollbackEvent(step=noticed, back_to=self.step, why=why))

    def _tell_figures(self, host: dict[str, float], pace: _Pace) -> None:
        speed = pace.flops(self.config.model) / pace.seconds
        self._tell(
            "on_log",
            LogEvent(
                step=self.step,
                tokens=self.tokens,
                seconds=self.seconds,
                loss=host["loss"],
                grad_norm=host["grad_norm"],
                skipped=int(host["skipped"]),
                lr=learning_rate(self.config, self.step - 1),
                tokens_per_second=pace.tokens / pace.seconds,
                tflops=speed / 1e12,
                mfu=speed / self.engine.peak_flops(),
                memory_mb=peak_memory_mb(),
            ),
        )

    def _tell_evaluation(self, model: Any) -> None:
        assert self.evaluation is not None
        self._tell(
            "on_eval",
            EvalEvent(
                step=self.step,
                tokens=self.tokens,
                seconds=self.seconds,
                evaluation=self.evaluation,
                is_best=self.best_step == self.step,
                write=partial(self._write_text, model),
            ),
        )

    def _is_looked_at(self) -> bool:
        """Whether the step to come is."""
        every = self.config.train.health.interval
        return every > 0 and (self.step + 1) % every == 0

    def _is_kept(self) -> bool:
        every = self.config.train.keep_every
        return every > 0 and self.step % every == 0

    def _follow(self, what: str, done: int, total: int) -> None:
        self._tell("on_progress", ProgressEvent(what=what, done=done, total=total))

    def _save(self) -> None:
        state = start_state(self.source) | {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "best_badness": self.best_badness,
            "evaluation": self.evaluation.as_dict() if self.evaluation is not None else None,
            "keep": self._is_kept(),
            "rollbacks": self.rollbacks,
            "watch": self.watch.as_dict(),
        }
        self.engine.save(self.state, self.run, state)
        self.saved_step = self.step

    def _write_text(self, model: Any, prompt: str, tokens: int) -> str:
        [text] = generate_text(
            self.engine,
            model,
            self.source.tokenizer,
            prompt,
            tokens=tokens,
            sampling=Sampling(temperature=0.8, seed=self.config.seed),
        )
        return text

    def _tell(self, hook: str, event: Any) -> None:
        for listener in self.listeners:
            getattr(listener, hook)(event)
