"""A run's state, and what its steps tell."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from bonsaigpt.config import RunConfig
from bonsaigpt.jax_engine.compiling import Program
from bonsaigpt.jax_engine.step import Learned

__all__ = ["State", "StepMetrics"]


@dataclass
class State:
    """A run's state; each step puts a new tree in the place of the old one."""

    config: RunConfig
    learned: Learned
    mesh: Mesh
    step: Program


@dataclass(frozen=True)
class StepMetrics:
    """Left on the device until somebody asks."""

    figures: jax.Array
    """Loss sum, gradient norm, steps skipped, skipped in a row."""
    count: int

    def host(self) -> dict[str, float]:
        """``loss`` (nats a token), ``grad_norm`` (before clipping), ``skipped`` steps so far and in a row; waits."""
        loss_sum, norm, skipped, in_a_row = np.asarray(self.figures).tolist()
        return {"loss": loss_sum / self.count, "grad_norm": norm, "skipped": skipped, "skipped_in_a_row": in_a_row}

    def health(self) -> None:
        """Nothing: this engine takes no looks."""
