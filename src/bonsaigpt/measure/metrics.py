"""How good an answer is: one number from 0 to 1 for each, by comparing texts, or by a script of the user's.

``f1`` and ``exact`` compare as SQuAD does (Rajpurkar et al. 2016): in lower case, without punctuation and articles, by
words; ``rouge`` is the F-measure of ROUGE-L (Lin 2004): the longest common subsequence of words. ``accuracy`` is for
labels, and asks for the very same text.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bonsaigpt.errors import DataError, did_you_mean

__all__ = ["METRICS", "Metric", "accuracy", "by_script", "exact", "f1", "metric_named", "rouge"]

Metric = Callable[[str, str], float]
"""Of a prediction and what it should have been."""


def accuracy(prediction: str, reference: str) -> float:
    """1 if they are the same text, else 0."""
    return float(prediction.strip() == reference.strip())


def exact(prediction: str, reference: str) -> float:
    """1 if they are the same words, else 0."""
    return float(_words(prediction) == _words(reference))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of the shares of words that are shared."""
    ours, theirs = _words(prediction), _words(reference)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return _harmonic(shared, len(ours), len(theirs))


def rouge(prediction: str, reference: str) -> float:
    """Harmonic mean of the shares of words in the longest common subsequence."""
    ours, theirs = prediction.lower().split(), reference.lower().split()
    lengths = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for column, other in enumerate(theirs, start=1):
            before, lengths[column] = (
                lengths[column],
                before + 1 if word == other else max(lengths[column], lengths[column - 1]),
            )
    return _harmonic(lengths[-1], len(ours), len(theirs))


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "exact": exact, "f1": f1, "rouge": rouge}


def metric_named(name: str) -> Metric | Path:
    """A metric by its name, or the script that a path names.

    Raises:
        DataError: neither.
    """
    if name in METRICS:
        return METRICS[name]
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    what = f"there is no script {name}" if path.suffix == ".py" else f"'{name}' is no metric"
    raise DataError(f"{what}: use one of {', '.join(METRICS)}, or a script.py of yours.{did_you_mean(name, METRICS)}")


def by_script(script: Path, answers: Sequence[Mapping[str, Any]]) -> list[float]:
    """What a Python script says of answers, in a process of its own: it reads a JSON object a line (``prompt``,
    ``reference``, ``prediction``, ``record``) from standard input, and writes a number for each, one a line.

    Raises:
        DataError: it fails, or writes anything else.
    """
    lines = "".join(json.dumps(answer) + "\n" for answer in answers)
    done = subprocess.run(
        [sys.executable, str(script)], input=lines, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise DataError(f"{script} failed: {why[0]}")
    found = done.stdout.split()
    try:
        scores = [float(word) for word in found]
    except ValueError as error:
        raise DataError(f"{script} must write a number a line, and wrote something else: {error}") from None
    if len(scores) != len(answers) or not all(map(math.isfinite, scores)):
        raise DataError(f"{script} was given {len(answers)} answers and wrote {len(scores)} numbers: one for each")
    return scores


_PUNCTUATION = re.compile(r"[^\w\s]|_")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())).split()


def _harmonic(shared: int, ours: int, theirs: int) -> float:
    if not ours and not theirs:
        return 1.0
    return 2.0 * shared / (ours + theirs)
