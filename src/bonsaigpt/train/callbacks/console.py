"""The terminal: a progress bar with loss, speed and time left, and a line for each evaluation."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bonsaigpt.measure import Evaluation
from bonsaigpt.train.events import (
    Callback,
    EvalEvent,
    LogEvent,
    Outcome,
    ProgressEvent,
    RollbackEvent,
    StartEvent,
    StepEvent,
)
from bonsaigpt.units import named

__all__ = ["ConsoleProgress", "score_line"]


def score_line(evaluation: Evaluation) -> str:
    """``loss 1.8857  perplexity 6.59  2.720 bits/byte``"""
    parts = [f"loss {evaluation.loss:.4f}", f"perplexity {evaluation.perplexity:.2f}"]
    if evaluation.bits_per_byte is not None:
        parts.append(f"{evaluation.bits_per_byte:.3f} bits/byte")
    if evaluation.exact is not None:
        parts.append(f"{evaluation.exact:.2%} exact")
    if evaluation.ordered is not None:
        parts.append(f"{evaluation.ordered:.2%} of pairs gained, margin {evaluation.margin:.3f}")
    if evaluation.parts is not None:
        parts.append(f"({', '.join(f'{name} {loss:.4f}' for name, loss in evaluation.parts.items())})")
    return "  ".join(parts)


class ConsoleProgress(Callback):
    """Live in a terminal; plain lines where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[figures]}[/]"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._best = ""

    def on_start(self, event: StartEvent) -> None:
        config, say = event.config, self._console.print
        say(
            f"[bold green]{escape(str(event.run.path))}[/]  {named(event.parameters, 'parameter')}, "
            f"{named(config.train.steps, 'step')} of {named(config.train.batch_size, 'sequence')}"
            + (f", resumed at step {event.step:,}" if event.step else "")
        )
        say(f"[dim]{escape(event.environment['why'])}[/]", highlight=False, soft_wrap=True)
        self._task = self._progress.add_task("training", total=config.train.steps, completed=event.step, figures="...")
        self._progress.start()

    def on_step(self, event: StepEvent) -> None:
        self._progress.update(self._task, completed=event.step)

    def on_log(self, event: LogEvent) -> None:
        speed = f"{event.tokens_per_second:,.0f} tokens/s  MFU {event.mfu:.0%}"
        self._progress.update(self._task, figures=f"loss {event.loss:.3f}  {speed}  {self._best}")

    def on_progress(self, event: ProgressEvent) -> None:
        self._progress.update(self._task, figures=f"{event.what} {event.done / event.total:.0%}")

    def on_eval(self, event: EvalEvent) -> None:
        mark = " [green]best[/]" if event.is_best else ""
        self._progress.console.print(
            f"step {event.step:>6,}  {event.seconds:7.1f} s  validation {escape(score_line(event.evaluation))}{mark}",
            highlight=False,
            soft_wrap=True,
        )
        self._progress.update(self._task, figures=self._best)
        if event.is_best:
            self._best = f"best {event.evaluation.loss:.4f}"

    def on_rollback(self, event: RollbackEvent) -> None:
        self._progress.console.print(
            f"[yellow]step {event.step:,}: {escape(event.why)}; back to step {event.back_to:,}, with the data in "
            "another order[/]",
            highlight=False,
            soft_wrap=True,
        )
        self._progress.update(self._task, completed=event.back_to)

    def on_stop(self, event: Outcome) -> None:
        self._progress.stop()
        if event.reason == "patience":
            self._console.print(f"stopped at step {event.step:,}: no new best for long enough", highlight=False)
        elif event.reason != "done":
            what = f"saved at step {event.step:,}" if event.step else "before the first step: nothing to save"
            self._console.print(f"[yellow]{event.reason}[/]: {what}", highlight=False)
        self._console.print(f"best validation loss {event.best_loss:.4f} at step {event.best_step:,}", highlight=False)
        if event.remark is not None:
            self._console.print(f"[yellow]{escape(event.remark)}[/]", highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()
