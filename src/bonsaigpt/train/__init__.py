"""The training loop and what may listen to it. Engine-agnostic: no torch, no jax."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from bonsaigpt.train.events import Outcome
from bonsaigpt.train.loop import last_checkpoint, start_state, state_before, train

__all__ = ["Outcome", "last_checkpoint", "start_state", "state_before", "train"]


class _Callable(ModuleType):
    """``bonsai.train("shakespeare-char")``: the package's name is also that of the verb, see ``bonsaigpt.api``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("bonsaigpt.api").train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
