"""The verbs as functions: ``import bonsaigpt as bonsai; run = bonsai.train("shakespeare-char", steps=500)``.

What makes runs or files (`train`, `compress`, `sweep`, ...) goes through the parser of its verb, so that both ways know
the same settings and say the same errors, and a run tells the command that repeats it, however it was made. What only
asks a model (`sample`, `eval`, `loss`) keeps it in memory from one call to the next.

Settings have the names of their flags: ``settings={"model.n_layer": 4, "optim.lr": 3e-3}``. Errors are those of
``bonsaigpt.errors``. Functions that take long show what the verbs show; ``quiet=True`` shows nothing.
"""

from bonsaigpt.api.model import Rules
from bonsaigpt.api.run import Run
from bonsaigpt.api.verbs import compare, export, fetch, load, parity, prepare, sweep, train
from bonsaigpt.api.words import Settings

__all__ = [
    "Rules",
    "Run",
    "Settings",
    "compare",
    "export",
    "fetch",
    "load",
    "parity",
    "prepare",
    "sweep",
    "train",
]
