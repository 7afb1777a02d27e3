"""Weights & Biases (extra `wandb`); set WANDB_MODE=offline to log without a network."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bonsaigpt.errors import DeviceError
from bonsaigpt.randomness import key
from bonsaigpt.train.events import Callback, EvalEvent, LogEvent, StartEvent

__all__ = ["WandB"]


class WandB(Callback):
    """Logs to the project ``train.wandb``; a resumed run goes on under its own id."""

    def __init__(self, project: str) -> None:
        try:
            self._wandb: Any = import_module("wandb")
        except ImportError:
            raise DeviceError("train.wandb needs the package: pip install 'bonsaigpt[wandb]'") from None
        self._project = project
        self._run: Any = None

    def on_start(self, event: StartEvent) -> None:
        name = event.run.path.name
        self._run = self._wandb.init(
            project=self._project,
            name=name,
            id=f"{name}-{key(str(event.run.environment.get('started', name))):016x}",
            resume="allow",
            dir=str(event.run.path),
            config=event.config.model_dump(mode="json"),
        )

    def on_log(self, event: LogEvent) -> None:
        self._run.log({"train/loss": event.loss, "lr": event.lr, "grad_norm": event.grad_norm}, step=event.step)

    def on_eval(self, event: EvalEvent) -> None:
        self._run.log({f"val/{k}": v for k, v in event.evaluation.scalars().items()}, step=event.step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
