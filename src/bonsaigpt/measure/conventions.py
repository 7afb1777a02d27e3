"""Perplexities as papers counted them, under their names: to stand beside their tables, and for nothing else.

``evaluate`` scores every target once and weighs all alike. A convention is what somebody published by, with its faults:
how the file becomes a text, which tokens are scored, and how their losses are averaged. Figures of one are comparable
within it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from bonsaigpt.data.batches import Batch
from bonsaigpt.engines import Engine
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance, silent

__all__ = ["CONVENTIONS", "Convention", "ConventionScore", "score_by"]

_ROWS = 16
"""Windows that are scored at once."""


@dataclass(frozen=True)
class ConventionScore:
    """A perplexity by a convention."""

    perplexity: float
    """exp of the mean over windows of each one's mean loss."""
    windows: int
    targets: int
    """Tokens that were scored: all but the first of each window."""


@dataclass(frozen=True)
class Convention:
    """How somebody counted."""

    about: str
    text: Callable[[str], str]
    """From the file to what is scored."""


def _wikitext(file: str) -> str:
    """The rows of the data set ``wikitext`` with blank lines between them: a row is a line with its end, or nothing."""
    return "\n\n".join(line if line.strip() else "" for line in StringIO(file, newline="\n"))


def _lambada(file: str) -> str:
    """Passages, one a line, with blank lines between them."""
    return "\n\n".join(line for line in file.split("\n") if line.strip())


CONVENTIONS = {
    "krony-wikitext": Convention("Krony-PT's of tokenised WikiText, its lines joined by blank ones", _wikitext),
    "krony-lambada": Convention("Krony-PT's of all tokens of LAMBADA, passages joined by blank lines", _lambada),
}
"""Krony-PT (Ben Ayad et al. 2024) goes by the guide of transformers: windows of a whole block without overlap, each
read from nothing; its first token is no target; and the mean is over windows, the short last one included."""


def score_by(engine: Engine, model: Any, ids: np.ndarray, *, block: int, advance: Advance = silent) -> ConventionScore:
    """The perplexity of a text's ids in Krony-PT's windows of ``block`` tokens.

    Raises:
        DataError: fewer than two tokens. A last window of one token, which has no target, is left out; the original
            gives NaN there.
    """
    whole, rest = divmod(len(ids), block)
    if len(ids) < 2:
        raise DataError("the text has fewer than two tokens: nothing follows anything in it")
    windows = ids[: whole * block].reshape(whole, block).astype(np.int64)
    groups = [windows[first : first + _ROWS] for first in range(0, whole, _ROWS)]
    groups += [ids[None, whole * block :].astype(np.int64)] if rest > 1 else []
    total, targets, done = 0.0, 0, 0
    for rows in groups:
        each = rows.shape[1] - 1
        batch = Batch(tokens_BT=rows[:, :-1], targets_BT=rows[:, 1:], count=len(rows) * each)
        total += engine.evaluate(model, batch)[0] / each
        targets, done = targets + batch.count, done + len(rows)
        advance("evaluating", done, whole + (rest > 1))
    [total] = engine.world.sum([total])  # each process has scored its rows of every group
    return ConventionScore(perplexity=math.exp(min(total / done, 700.0)), windows=done, targets=targets)
