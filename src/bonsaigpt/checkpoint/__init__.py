"""Run directories, and checkpoints that exist whole or not at all. Pickle is never read."""

from bonsaigpt.checkpoint.files import Arrays, Checkpoint
from bonsaigpt.checkpoint.rundir import RunDirectory, check_weights, split_address

__all__ = ["Arrays", "Checkpoint", "RunDirectory", "check_weights", "split_address"]
