"""The PyTorch engine as the rest of the house sees it: the methods of ``bonsaigpt.engines.Engine``."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, RunConfig
from bonsaigpt.data.batches import Batch
from bonsaigpt.torch_engine.cache import FullCache
from bonsaigpt.torch_engine.device import Placement, choose_placement
from bonsaigpt.torch_engine.linear import linear
from bonsaigpt.torch_engine.model import GPT, build, weights
from bonsaigpt.torch_engine.optim import load_state, make_optimizer, state_arrays
from bonsaigpt.torch_engine.step import State, StepMetrics, evaluate_batch, train_step

__all__ = ["TorchEngine"]


class TorchEngine:
    """PyTorch on one device."""

    name = "torch"

    def __init__(self, *, device: str = "auto", precision: str = "auto", threads: int = 0) -> None:
        self.placement: Placement = choose_placement(device, precision, threads)

    def describe(self) -> dict[str, Any]:
        """Versions, device and precision with the reason."""
        return {
            "engine": f"torch {torch.__version__}",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(self.placement.device),
            "precision": str(self.placement.dtype).removeprefix("torch."),
            "why": self.placement.why,
            "compile": "no: eager",
            "threads": torch.get_num_threads(),
        }

    # ------------------------------------------------------------------ training

    def init(self, config: RunConfig, values: Arrays | None = None) -> State:
        """A fresh state: weights from the seed, or from ``values``; the optimizer starts anew."""
        model = build(config.model, seed=config.seed, values=values).to(self.placement.device)
        return State(model, make_optimizer(model, config.optim))

    def restore(self, config: RunConfig, model: Arrays, optimizer: Arrays, *, step: int) -> State:
        """The state that was saved after ``step`` steps."""
        state = self.init(config, model)
        load_state(state.model, state.optimizer, optimizer, step=step)
        return state

    def arrays(self, state: State) -> tuple[Arrays, Arrays]:
        """Weights and optimizer state on the host."""
        return weights(state.model), state_arrays(state.model, state.optimizer)

    def step(self, state: State, batch: Batch, *, config: RunConfig, lr: float, step: int) -> StepMetrics:
        """One optimizer step, in place."""
        return train_step(state, batch, config=config, placement=self.placement, lr=lr, step=step)

    def evaluate(self, model: GPT, batch: Batch, *, exact: bool = False) -> tuple[float, int]:
        """Sum of the loss in nats, and, if ``exact``, rows solved whole."""
        return evaluate_batch(model, batch, self.placement, exact=exact)

    # ------------------------------------------------------------------ a model alone

    def model(self, config: ModelConfig, values: Arrays) -> GPT:
        """A model to evaluate or to generate with."""
        return build(config, values=values).to(self.placement.device).eval()

    def model_of(self, state: State) -> GPT:
        """The model inside a training state."""
        return state.model

    def block_size(self, model: GPT) -> int:
        """Longest context of the model, in tokens."""
        return model.config.block_size

    def cache(self, model: GPT, *, batch: int) -> FullCache:
        """An empty cache with one slot for each position of a block."""
        return FullCache(
            model.config,
            batch=batch,
            slots=model.config.block_size,
            device=self.placement.device,
            dtype=self.placement.dtype,
        )

    @torch.inference_mode()
    def next_logits(self, model: GPT, tokens_BT: np.ndarray, cache: FullCache | None = None) -> np.ndarray:
        """Logits of the token after the last, (B, V) float32 on the host; the cache takes the new tokens."""
        model.eval()
        tokens = torch.from_numpy(np.ascontiguousarray(tokens_BT, dtype=np.int64)).to(self.placement.device)
        with self.placement.autocast():
            last_B1D = model.hidden(tokens, cache=cache)[:, -1:]
            logits_BV = linear(last_B1D, model.head_weight)[:, 0]
        return logits_BV.float().cpu().numpy()
