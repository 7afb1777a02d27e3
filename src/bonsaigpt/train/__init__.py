"""The training loop and what may listen to it. Engine-agnostic: no torch, no jax."""

from bonsaigpt.train.loop import Outcome, train

__all__ = ["Outcome", "train"]
