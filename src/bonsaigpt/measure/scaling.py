"""What loss a run will end at, from a fit over finished runs.

The form is that of Hoffmann et al. 2022 (https://arxiv.org/abs/2203.15556), equation 2,

    L(N, D) = E + A / N^a + B / D^b

for N parameters and D training tokens; as there (section 3.3), a Huber loss on log L is minimised. E, A and B enter
linearly, so only the two exponents are searched for, on a grid that closes in. ``scaling.json`` holds the runs and the
fit over them; ``benchmarks/track/scaling.py`` makes it anew. It speaks of one text, one recipe and one batch, and of
nothing else: ``Scaling.why_not`` says of a run why there is no prediction for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from bonsaigpt.config import RunConfig, validate
from bonsaigpt.recipes import flatten
from bonsaigpt.units import count

__all__ = ["Prediction", "Scaling", "compared_settings", "fit", "leave_one_out"]

_HUBER = 1e-3
"""Residuals of log L from which on a point pulls no harder, as in the paper."""
_EXPONENTS = (0.02, 3.0)
_SIZES = ("preset", "n_layer", "n_head", "n_embd", "vocab_size")
"""Settings of the model that N stands for, or that follow from the text."""
_TRAIN = ("batch_size", "batch_ramp", "context_ramp")
"""Settings of the loop that change what is learned from so many tokens."""


@dataclass(frozen=True)
class Prediction:
    """The validation loss at the end of a run."""

    loss: float
    """Nats a token."""
    margin: float
    """Twice the fit's spread."""
    beyond: str
    """In words how the run lies outside what was fitted; empty if it does not."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A fit, and the runs it was made from."""

    E: float
    A: float
    a: float
    B: float
    b: float
    spread: float
    """Root mean square of its errors, nats, at runs that were left out of the fit one at a time."""
    runs: list[tuple[int, int, float]]
    """(N, D, loss in nats) of each."""
    settings: dict[str, Any]
    """What all of them had in common; see ``compared_settings``."""
    corpus: str
    """Fingerprint of their tokens."""
    text: str
    """What these are, in words."""

    @classmethod
    def shipped(cls) -> Scaling:
        """The one that comes with the package."""
        file = resources.files(__package__ or "") / "scaling.json"
        return cls.from_json(file.read_text(encoding="utf-8"))

    @classmethod
    def of(cls, runs: list[tuple[int, int, float]], config: RunConfig, *, corpus: str, text: str) -> Scaling:
        """The fit over finished runs."""
        coefficients = dict(zip(("E", "A", "a", "B", "b"), fit(runs), strict=True))
        spread = float(np.sqrt(np.mean(np.square(leave_one_out(runs)))))
        settings = compared_settings(config)
        return cls(**coefficients, spread=spread, runs=runs, settings=settings, corpus=corpus, text=text)

    @classmethod
    def from_json(cls, text: str) -> Scaling:
        """What ``to_json`` gave."""
        fields = json.loads(text)
        return cls(**fields | {"runs": [(n, d, loss) for n, d, loss in fields["runs"]]})

    def to_json(self) -> str:
        """For ``scaling.json``: one line for each run."""
        named = {
            name: getattr(self, name) for name in ("text", "corpus", "E", "A", "a", "B", "b", "spread", "settings")
        }
        rows = ",\n    ".join(json.dumps(run) for run in self.runs)
        return json.dumps(named, indent=2).removesuffix("\n}") + f',\n  "runs": [\n    {rows}\n  ]\n}}\n'

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D), nats a token."""
        return self.E + self.A / parameters**self.a + self.B / tokens**self.b

    def why_not(self, config: RunConfig, fingerprint: str) -> str | None:
        """In words why the fit says nothing about a run on data of that fingerprint; None if it does."""
        if not fingerprint.startswith(self.corpus):
            return f"the fit is of {self.text}, and this is other data"
        own = compared_settings(config)
        its = _filled(self.settings)
        differing = [name for name in sorted(own.keys() | self.settings) if own.get(name) != its.get(name)]
        if not differing:
            return None
        name = next((n for n in differing if n.endswith(".kind")), differing[0])
        more = f", and {len(differing) - 1} more settings differ" if len(differing) > 1 else ""
        return f"{name} is {_word(own.get(name))}, the fit's {_word(its.get(name))}{more}"

    def predict(self, parameters: int, tokens: int) -> Prediction:
        """The loss of a run that ``why_not`` has nothing against."""
        return Prediction(self.loss(parameters, tokens), 2 * self.spread, self._beyond(parameters, tokens))

    def _beyond(self, parameters: int, tokens: int) -> str:
        words: list[str] = []
        for value, what, column in ((parameters, "parameters", 0), (tokens, "tokens", 1)):
            low, high = min(run[column] for run in self.runs), max(run[column] for run in self.runs)
            if not low <= value <= high:
                words.append(f"{count(value)} {what}, the runs had {count(low)} to {count(high)}")
        if not words and not _is_among((parameters, tokens), [run[:2] for run in self.runs]):
            words.append(
                f"{count(parameters)} parameters and {count(tokens)} tokens lie within the runs each, but "
                "not both together"
            )
        return "; ".join(words)


def compared_settings(config: RunConfig) -> dict[str, Any]:
    """All settings that change what is learned but for N, D, the seed and the text, by their dotted names. Number
    formats are left out: their rounding moves a loss by less than a seed does."""
    data = config.model_dump(mode="json", exclude_none=True)
    model = {name: value for name, value in data["model"].items() if name not in _SIZES}
    sections = {
        "model": model | {"head_width": config.model.head_width},
        "data": {"order": data["data"].get("order")},
        "optim": data["optim"],
        "train": {name: data["train"][name] for name in _TRAIN},
    }
    return {name: value for name, value in flatten(sections).items() if name != "optim.matrices.precision"}


def _filled(settings: dict[str, Any]) -> dict[str, Any]:
    """A fit's settings, and those that did not exist when it was made, as they are where nobody sets them."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        section, *path, last = name.split(".")
        if section != "data" and name != "model.head_width":  # not whole; no setting but what follows from two
            part = nested.setdefault(section, {})
            for step in path:
                part = part.setdefault(step, {})
            part[last] = value
    return compared_settings(validate(nested, origin="the fit")) | settings


def fit(runs: list[tuple[int, int, float]]) -> tuple[float, float, float, float, float]:
    """E, A, a, B and b of the form above for (N, D, loss) of at least six runs."""
    n, d, loss = (np.array(column, dtype=float) for column in zip(*runs, strict=True))
    middle_n, middle_d = (float(np.exp(np.log(values).mean())) for values in (n, d))  # keeps the columns of one size
    low_a, high_a = low_b, high_b = _EXPONENTS
    best = (0.0,) * 5
    for _ in range(6):  # each round a fifth of the range before, around the best: exponents to 1e-4
        a, b = (g.ravel() for g in np.meshgrid(np.linspace(low_a, high_a, 31), np.linspace(low_b, high_b, 31)))
        columns = np.stack(
            [np.ones((len(a), len(n))), (n / middle_n) ** -a[:, None], (d / middle_d) ** -b[:, None]], axis=-1
        )
        weights, distance = _linear_part(columns, loss)
        i = int(distance.argmin())
        E, A, B = weights[i].tolist()
        best = (E, A * middle_n ** a[i], a[i], B * middle_d ** b[i], b[i])
        step_a, step_b = (high_a - low_a) / 10, (high_b - low_b) / 10
        low_a, high_a = max(_EXPONENTS[0], a[i] - step_a), a[i] + step_a
        low_b, high_b = max(_EXPONENTS[0], b[i] - step_b), b[i] + step_b
    E, A, a, B, b = map(float, best)
    return E, A, a, B, b


def _linear_part(columns: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pair of exponents E, A and B, (pairs, 3), and the Huber loss that is left, (pairs,); by least squares
    that are weighted anew until far points pull as Huber's loss lets them."""
    solved, pull = np.zeros((len(columns), 3)), np.ones(columns.shape[:2])
    residual = pull
    for _ in range(20):
        scaled = pull / loss**2  # a residual of the loss over the loss is one of its logarithm
        normal = np.einsum("gij,gi,gik->gjk", columns, scaled, columns) + 1e-12 * np.eye(3)
        solved = np.linalg.solve(normal, np.einsum("gij,gi,i->gj", columns, scaled, loss)[..., None])[..., 0]
        predicted = np.einsum("gij,gj->gi", columns, solved)
        residual = np.abs(np.log(np.maximum(predicted, 1e-9)) - np.log(loss))
        pull = _HUBER / np.maximum(residual, _HUBER)
    huber = np.where(residual < _HUBER, 0.5 * residual**2, _HUBER * (residual - 0.5 * _HUBER)).sum(axis=1)
    return solved, np.where((solved >= 0).all(axis=1), huber, np.inf)  # no term of the form is negative


def leave_one_out(runs: list[tuple[int, int, float]]) -> list[float]:
    """At each run, predicted - found of the fit over all others, nats."""
    errors: list[float] = []
    for i, (n, d, found) in enumerate(runs):
        E, A, a, B, b = fit([*runs[:i], *runs[i + 1 :]])
        errors.append(E + A / n**a + B / d**b - found)
    return errors


def _is_among(point: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    """Whether a point lies in the convex hull of others, their edge included, on logarithmic axes: seen from outside,
    they all lie within less than half a turn."""
    away = np.log(others) - np.log(point)
    if (away == 0.0).all(axis=1).any():
        return True
    angles = np.sort(np.arctan2(away[:, 1], away[:, 0]))
    return bool(np.diff(angles, append=angles[0] + 2 * np.pi).max() <= np.pi + 1e-9)


def _word(value: Any) -> str:
    return "not set" if value is None else str(value)
