"""From a trained model and examples to the configuration of a run that goes on with it on them.

What is trained is said by learning rates alone (``optim.lr_scale``): 0 freezes, and layers further from the answer may
take smaller steps (discriminative fine-tuning, Howard and Ruder 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from bonsaigpt.adapt.training import at_share
from bonsaigpt.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, derive
from bonsaigpt.data.examples.reading import Example
from bonsaigpt.data.tokenizers import END_OF_TEXT, Tokenizer, label_token, with_special
from bonsaigpt.errors import ConfigError, did_you_mean
from bonsaigpt.spec import parameters

__all__ = ["finetuned_config", "frozen", "layerwise", "on_top", "tokenizer_with"]

_SHARE_NEW = 1.0
"""Of the learning rates of the pretraining where tokens were added: their rows have everything to learn."""
_WARMUP = 0.1
"""Share of the steps."""
_LABELS = 10_000
"""Labels at most."""


def tokenizer_with(tokenizer: Tokenizer, labels: Sequence[Example] | None) -> Tokenizer:
    """The tokenizer with an end-of-text token, and one for each completion of some examples, if they are labels.

    Raises:
        ConfigError: the completions are too many, or too different, to be labels.
    """
    special = [] if tokenizer.end_of_text is not None else [END_OF_TEXT]
    if labels is not None:
        names = sorted({example.completion for example in labels})
        if len(names) > min(_LABELS, len(labels) // 2):
            raise ConfigError(
                f"--label-tokens makes a token of each completion, and {len(labels):,} examples have {len(names):,} "
                f"different ones, e.g. {names[0]!r}: leave it out, or check the template"
            )
        special += [label_token(name) for name in names]
    return with_special(tokenizer, special)


def layerwise(model: ModelConfig, factor: float) -> dict[str, float]:
    """Factors on learning rates: 1 for the last block and all after it, ``factor`` less for each block before it, and
    once more for the embeddings."""
    scales = {"transformer.w[tp]e.*": factor**model.n_layer}
    for layer in range(model.n_layer):
        scales[f"transformer.h.{layer}.*"] = factor ** (model.n_layer - 1 - layer)
    return scales


def frozen(model: ModelConfig, globs: Sequence[str]) -> dict[str, float]:
    """Factors that freeze the parameters of these names.

    Raises:
        ConfigError: one of them matches nothing.
    """
    names = [p.name for p in parameters(model) if p.tied_to is None]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(f"'{glob}' matches no parameter of this model.{did_you_mean(glob, names)}")
    return dict.fromkeys(globs, 0.0)


def on_top(scales: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """Factors on learning rates with more behind them, as the last match wins: a glob of both moves to the end."""
    return {glob: scale for glob, scale in scales.items() if glob not in more} | more


def finetuned_config(
    base: RunConfig,
    model: ModelConfig,
    data: DataConfig,
    *,
    steps: int,
    scales: dict[str, float],
    exact: bool,
    new_tokens: bool = False,
    objective: ObjectiveConfig,
) -> RunConfig:
    """The configuration of a run that tunes a model for so many steps.

    Learning rates begin at the objective's share of those that the model was trained with from random weights, and fall
    to zero along a straight line; the model may be another one than the base's by its vocabulary or structure: adapters
    are trained as the base's weights were. What the engine decides is left open again.

    Args:
        scales: factors on learning rates by parameter name, on top of those of ``base``.
        exact: keep the checkpoint with most answers right, not the one with the lowest loss.
        new_tokens: the model has rows that were never trained.
        objective: what becomes likelier.
    """
    optim = at_share(base.optim, _SHARE_NEW if new_tokens else objective.tuning_share) | {
        "lr_scale": on_top({glob: s for glob, s in base.optim.lr_scale.items() if s > 0}, scales),
        "schedule": {"kind": "linear", "warmup": round(steps * _WARMUP), "final": 0.0},
        "distill": {"kind": "none"},
        "objective": objective.model_dump(),
    }
    if objective.kind != "likelihood":
        optim["z_loss"] = 0.0
    if base.optim.matrices.kind == "muon":
        optim["matrices"]["precision"] = "auto"
    train: dict[str, Any] = {
        "steps": steps,
        "eval_interval": max(1, steps // 10),
        "best": "preference" if objective.kind == "preference" else "exact" if exact else "loss",
        "batch_ramp": {"kind": "none"},
        "context_ramp": {"kind": "none"},
        "memory": {"kind": "none"},
        "sample_tokens": 0,
        "micro_batch": 0,
        "workers": 0,
        "precision": "auto",
        "compile": "auto",
        "attention_kernel": "auto",
    }
    blank = base.model_copy(
        update={
            "about": f"{base.about}, fine-tuned" if base.about else "fine-tuned",
            "data": data,
            "train": base.train.model_copy(update={"eval_block_size": None}),
        }
    )
    return derive(blank, model=model.model_dump(exclude_none=True), optim=optim, train=train)
