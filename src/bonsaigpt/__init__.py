"""BonsaiGPT: a workshop for small GPTs. The command line is ``bonsai``; from Python the same verbs are functions:

    import bonsaigpt as bonsai

    run = bonsai.train("stdlib", steps=300)
    print(run.sample("def ", tokens=100))

``bonsaigpt.api`` tells all of them. Nothing heavy is imported before the first is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bonsaigpt.api import Run, compare, export, fetch, load, parity, prepare, sweep, train

__version__ = "0.1.0"

__all__ = ["Run", "compare", "export", "fetch", "load", "parity", "prepare", "sweep", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # also the name of a package, which can be called: the same object, whatever came first
        return import_module("bonsaigpt.train")
    if name in __all__:
        return getattr(import_module("bonsaigpt.api"), name)
    raise AttributeError(f"module 'bonsaigpt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
