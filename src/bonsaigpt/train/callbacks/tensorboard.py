"""TensorBoard: the same numbers as metrics.jsonl, under tensorboard/."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from bonsaigpt.train.events import Callback, EvalEvent, LogEvent, StartEvent

if TYPE_CHECKING:
    from tensorboard.summary import Writer

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Scalars by step. A resumed run starts a new file, whose steps TensorBoard shows in place of the older."""

    def __init__(self) -> None:
        self._writer: Writer | None = None

    def on_start(self, event: StartEvent) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its protobuf and pkg_resources deprecations are no news to our users
            from tensorboard.summary import Writer

            self._writer = Writer(str(event.run.path / "tensorboard"))

    def on_log(self, event: LogEvent) -> None:
        self._add("train/loss", event.loss, event.step)
        self._add("train/lr", event.lr, event.step)
        self._add("train/grad_norm", event.grad_norm, event.step)
        self._add("speed/tokens_per_second", event.tokens_per_second, event.step)
        self._add("speed/mfu", event.mfu, event.step)

    def on_eval(self, event: EvalEvent) -> None:
        for name, value in event.evaluation.scalars().items():
            self._add(f"val/{name}", value, event.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, tag: str, value: float, step: int) -> None:
        assert self._writer is not None
        self._writer.add_scalar(tag, value, step)
