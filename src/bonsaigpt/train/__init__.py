"""The training loop and what may listen to it. Engine-agnostic: no torch, no jax."""

from bonsaigpt.train.events import Outcome
from bonsaigpt.train.loop import last_checkpoint, start_state, train

__all__ = ["Outcome", "last_checkpoint", "start_state", "train"]
