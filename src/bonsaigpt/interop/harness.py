"""EleutherAI's lm-evaluation-harness over a live model: no copy of the weights, no export.

The harness asks for log-likelihoods of continuations, of whole texts in windows, and for greedy text; contexts that are
too long lose their beginning, as in its own model ``hf``, with which results agree (a test).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Engine
from bonsaigpt.errors import DataError, DeviceError, did_you_mean
from bonsaigpt.generate import Request, Session
from bonsaigpt.sampling import Sampling

__all__ = ["harness_model", "run_harness"]

_ROWS = 32
"""Sequences that are scored at once."""
_WRITERS = 8
"""Texts that are written side by side."""
_NEW_TOKENS = 256
"""Of an answer, where the task does not say."""


def run_harness(
    model: Any,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    download: bool = False,
) -> dict[str, Any]:
    """The harness's own results of some of its tasks, or of those that the YAML files of a folder define.

    Args:
        model: of ``harness_model``.
        download: whether it may fetch data sets from the hub; otherwise they must be on this disk.

    Raises:
        DeviceError: the extra is missing.
        DataError: there is no such task, or its data are not here.
    """
    if not download:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    _check_installed()
    from lm_eval.tasks import TaskManager

    evaluator: Any = import_module("lm_eval.evaluator")  # a decorator hides the parameters of its function
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in tasks:
        if name not in manager.all_tasks:
            raise DataError(f"the harness has no task '{name}'.{did_you_mean(name, manager.all_tasks)}")
    try:
        found = evaluator.simple_evaluate(
            model=model, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager, log_samples=True
        )
    except (ConnectionError, FileNotFoundError) as error:
        why = str(error).splitlines()[0]
        raise DataError(
            f"the data of {', '.join(tasks)} are not on this disk ({why}): allow it with --download"
        ) from None
    assert found is not None  # only ranks above 0 get none
    return dict(found)


def _check_installed() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise DeviceError("the harness needs the package lm-eval: pip install 'bonsaigpt[eval]'") from None


def harness_model(engine: Engine, model: Any, tokenizer: Tokenizer) -> Any:
    """The model as the harness sees it, a ``lm_eval.api.model.TemplateLM``.

    Raises:
        DeviceError: the extra is missing.
        DataError: the tokenizer has no end-of-text token, which stands before texts without a context.
    """
    _check_installed()
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    if tokenizer.end_of_text is None:
        raise DataError(
            f"the harness needs a token that begins a text, and a '{tokenizer.kind}' tokenizer has none: train with "
            "another, e.g. --data.tokenizer.kind bytes"
        )
    block, end = engine.block_size(model), tokenizer.end_of_text

    class HarnessModel(TemplateLM):
        """See the module."""

        @property
        def eot_token_id(self) -> int:
            return end

        @property
        def tokenizer_name(self) -> str:
            return f"bonsai-{tokenizer.kind}-{tokenizer.vocab_size}"

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return tokenizer.encode(string).tolist()

        def _loglikelihood_tokens(
            self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
        ) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            found = _continuations(engine, model, pairs, block, end)
            for (key, _, _), answer in zip(requests, found, strict=True):
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, answer)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            totals: list[float] = []
            for (text,) in (request.args for request in requests):
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(text), prefix_token=end, max_seq_len=block, context_len=1
                )
                pairs = [make_disjoint_window(window) for window in windows]
                totals.append(sum(score for score, _ in _continuations(engine, model, pairs, block, end)))
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked = [request.args for request in requests]
            session = Session(engine.decoder(model, rows=min(_WRITERS, max(1, len(asked)))), tokenizer)
            return [c.text for c in session.run(_request(self.tok_encode(text), how) for text, how in asked)]

    def _request(ids: list[int], how: dict[str, Any]) -> Request:
        until = how.get("until") or []
        new = min(int(how.get("max_gen_toks", _NEW_TOKENS)), block - 1)
        return Request(
            prompt=(ids or [end])[-(block - new) :],
            max_tokens=new,
            sampling=Sampling(temperature=float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0),
            stop=[until] if isinstance(until, str) else [stop for stop in until if stop],
            stop_tokens=[end],
        )

    return HarnessModel()


def _continuations(
    engine: Engine, model: Any, pairs: Sequence[tuple[list[int], list[int]]], block: int, end: int
) -> list[tuple[float, bool]]:
    """Of each context and continuation the log-likelihood of the latter, and whether it is what is chosen greedily."""
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0]) + len(pairs[n][1]))
    for first in range(0, len(order), _ROWS):
        numbers = order[first : first + _ROWS]
        rows = [([*pairs[n][0], *pairs[n][1]][-block - 1 :], len(pairs[n][1])) for n in numbers]
        shape = len(rows), max(len(ids) for ids, _ in rows) - 1
        tokens_BT, targets_BT = np.full(shape, end, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
        for row, (ids, length) in enumerate(rows):
            asked = slice(max(0, len(ids) - 1 - length), len(ids) - 1)
            tokens_BT[row, : len(ids) - 1] = ids[:-1]
            targets_BT[row, asked] = ids[asked.start + 1 :]
        count = int((targets_BT != IGNORE).sum())
        scores = engine.target_scores(model, Batch(tokens_BT=tokens_BT, targets_BT=targets_BT, count=count))
        sums_R = np.bincount(scores.rows_N, weights=scores.losses_N, minlength=len(rows))
        wrong_R = np.bincount(scores.rows_N, weights=~scores.right_N, minlength=len(rows))
        for row, number in enumerate(numbers):
            found[number] = -float(sums_R[row]), bool(wrong_R[row] == 0)
    return found
