"""What a model answers to the prompts of a task, and how good that is.

Where there are labels the model chooses: the one that it finds likeliest after the prompt, by its log-probability as a
whole, end included. Else it writes, greedily, until it ends its answer. Both take prompts as training does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.data.examples.encoding import encode_said, end_of_text, prompt_ids
from bonsaigpt.data.examples.reading import Example
from bonsaigpt.data.tokenizers import Tokenizer, label_token
from bonsaigpt.engines import Engine
from bonsaigpt.errors import DataError
from bonsaigpt.generate import Request, Session
from bonsaigpt.measure.metrics import Metric, by_script
from bonsaigpt.sampling import Sampling

__all__ = ["Answer", "ClassScore", "TaskResult", "choose", "class_scores", "graded", "write"]

_ROWS = 8
"""Texts that are written side by side."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """To one example."""

    prompt: str
    reference: str
    """What should have come."""
    prediction: str
    score: float = math.nan
    """By the metric, 0 to 1."""
    confidence: float
    """Probability of the prediction: among the labels, or for a text that was written of each token in the geometric
    mean."""
    reference_rank: int | None = None
    """Of the reference among the labels, from 1; None where nothing was chosen, or where it is no label."""
    record: dict[str, Any]
    """The line of the file."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Answers to all examples of a task, and their mean."""

    metric: str
    answers: Sequence[Answer]
    labels: Sequence[str]
    """Between which was chosen; empty where the model wrote."""

    @property
    def mean(self) -> float:
        """Of the scores."""
        return float(np.mean([answer.score for answer in self.answers]))

    @property
    def standard_error(self) -> float | None:
        """Of the mean, over examples; None for a single one."""
        n = len(self.answers)
        return float(np.std([a.score for a in self.answers], ddof=1)) / math.sqrt(n) if n > 1 else None

    @property
    def worst_first(self) -> list[Answer]:
        """The answers, those with the lowest score first, and of equal ones the most confident."""
        return sorted(self.answers, key=lambda a: (a.score, -a.confidence))

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the single answers."""
        found: dict[str, Any] = {"metric": self.metric, "mean": self.mean, "examples": len(self.answers)}
        if self.standard_error is not None:
            found["standard_error"] = self.standard_error
        if self.labels:
            scores = class_scores(self.answers)
            found |= {
                "labels": len(self.labels),
                "macro_f1": float(np.mean([s.f1 for s in scores])),
                "recall": {s.label: s.recall for s in scores},
            }
        return found


@dataclass(frozen=True)
class ClassScore:
    """How one label fared."""

    label: str
    examples: int
    recall: float
    """Share of its examples that got it."""
    precision: float
    """Share of those that got it to whom it belongs; 0 where none did."""

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        return 2 * self.recall * self.precision / (self.recall + self.precision or 1.0)


def class_scores(answers: Sequence[Answer]) -> list[ClassScore]:
    """Of every label that is a reference, in alphabetical order."""
    given = Counter(answer.prediction for answer in answers)
    wanted = Counter(answer.reference for answer in answers)
    right = Counter(answer.reference for answer in answers if answer.prediction == answer.reference)
    return [
        ClassScore(label, wanted[label], right[label] / wanted[label], right[label] / max(1, given[label]))
        for label in sorted(wanted)
    ]


def choose(
    engine: Engine,
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    labels: Sequence[str],
    *,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Answer]:
    """The likeliest of the labels for each example.

    Raises:
        DataError: fewer than two labels, or no room for one in a block.
    """
    if len(labels) < 2:
        raise DataError(f"there is nothing to choose from: {len(labels)} labels. Give at least two.")
    block_size, end = engine.block_size(model), end_of_text(tokenizer)
    choices = [_with_end(label, tokenizer, end) for label in labels]
    room = block_size - max(map(len, choices)) + 1
    if room < 1:
        raise DataError(f"the longest label takes {block_size - room + 1} tokens, and a block has {block_size}")
    prompts = [prompt_ids(example, tokenizer)[-room:] for example in examples]
    scores_NC = engine.choice_scores(model, prompts, choices, lambda done: advance("choosing", done, len(prompts)))
    logs_NC = scores_NC - _log_sum_exp(scores_NC)[:, None]
    place = {label: number for number, label in enumerate(labels)}
    answers: list[Answer] = []
    for example, logs_C in zip(examples, logs_NC, strict=True):
        best, wanted = int(logs_C.argmax()), place.get(example.completion)
        answers.append(
            Answer(
                prompt=example.prompt,
                reference=example.completion,
                prediction=labels[best],
                confidence=math.exp(logs_C[best]),
                reference_rank=None if wanted is None else 1 + int((logs_C > logs_C[wanted]).sum()),
                record=dict(example.record),
            )
        )
    return answers


def _with_end(label: str, tokenizer: Tokenizer, end: int) -> np.ndarray:
    ids = encode_said(label, tokenizer)
    return ids if label_token(label) in tokenizer.special_tokens else np.append(ids, end)


def _log_sum_exp(scores_NC: np.ndarray) -> np.ndarray:
    top_N = scores_NC.max(axis=1)
    return top_N + np.log(np.exp(scores_NC - top_N[:, None]).sum(axis=1))


def write(
    engine: Engine,
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Answer]:
    """What the model writes for each example: greedily, to the end of its text or so many tokens."""
    end = end_of_text(tokenizer)
    room = engine.block_size(model) - max_tokens + 1  # the last token is never read
    if room < 1:
        raise DataError(f"answers of {max_tokens} tokens leave no room for a prompt in a block: allow fewer")
    session = Session(engine.decoder(model, rows=min(_ROWS, len(examples))), tokenizer)
    requests = [
        Request(
            prompt=prompt_ids(example, tokenizer)[-room:].tolist(),
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0.0),
            stop_tokens=[end],
            logprobs=0,
            overflow="error",
        )
        for example in examples
    ]
    done = 0

    def follow(event: Any) -> None:
        nonlocal done
        if event.finish is not None:
            done += 1
            advance("writing", done, len(requests))

    labels = {index: text[2:-2] for text, index in tokenizer.special_tokens.items() if text.startswith("<|")}
    answers: list[Answer] = []
    for example, completion in zip(examples, session.run(requests, on_event=follow), strict=True):
        said = completion.tokens[0] if completion.tokens else end
        is_label = said in labels and said != end
        answers.append(
            Answer(
                prompt=example.prompt,
                reference=example.completion,
                prediction=labels[said] if is_label else completion.text,
                confidence=math.exp(completion.mean_logprob or 0.0),
                record=dict(example.record),
            )
        )
    return answers


def graded(answers: Sequence[Answer], metric: Metric | Path) -> list[Answer]:
    """The answers with their scores.

    Raises:
        DataError: the metric is a script, and fails.
    """
    if isinstance(metric, Path):
        scores = by_script(metric, [asdict(answer) for answer in answers])
    else:
        scores = [metric(answer.prediction, answer.reference) for answer in answers]
    return [replace(answer, score=score) for answer, score in zip(answers, scores, strict=True)]
