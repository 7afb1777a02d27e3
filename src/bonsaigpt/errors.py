"""The tree of errors. Each message names the cause and, after a colon or in a second sentence, the remedy.

BonsaiError                 anything a user can mend; the CLI prints it and exits with code 2
├── ConfigError             a setting is misspelt, of the wrong type or impossible
├── DataError               a text, corpus or token stream cannot be used
│   └── TokenizerError      a character or id outside the vocabulary
├── CheckpointError         a run or checkpoint is missing, damaged, foreign or of another shape
├── GenerateError           a prompt or a sampling setting cannot be used
├── DivergenceError         a training ran away again and again; the message says what to try
├── DeviceError             a device, precision or optional package is not there
└── OutputError             the disk is full, a folder is read-only, a file already exists
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BonsaiError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DivergenceError",
    "GenerateError",
    "OutputError",
    "TokenizerError",
    "did_you_mean",
]


class BonsaiError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(BonsaiError):
    """A setting is misspelt, of the wrong type, or impossible together with another."""


class DataError(BonsaiError):
    """A text, corpus or token stream cannot be used."""


class TokenizerError(DataError):
    """A character or token id lies outside the vocabulary."""


class CheckpointError(BonsaiError):
    """A run or checkpoint is missing, damaged, foreign, or of another shape."""


class GenerateError(BonsaiError):
    """A prompt or a sampling setting cannot be used."""


class DivergenceError(BonsaiError):
    """A training ran away, and going back to its last good checkpoint did not help."""


class DeviceError(BonsaiError):
    """A device, a precision or an optional package is not available."""


class OutputError(BonsaiError):
    """Something cannot be written: full disk, read-only folder, or a file that is already there."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest of ``known``, or the empty string if nothing is near."""
    options = list(known)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if not near:  # `n_layers` for `model.n_layer`: compare the last part of dotted names as well
        tails = {name.rsplit(".", 1)[-1]: name for name in reversed(options)}
        near = [tails[t] for t in difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)]
    return f" Did you mean '{near[0]}'?" if near else ""
