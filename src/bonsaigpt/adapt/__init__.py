"""Trained models made into others: tuned on examples, at a longer context, with a smaller cache."""

from bonsaigpt.adapt.finetune import finetuned_config, frozen, layerwise, on_top, tokenizer_with
from bonsaigpt.adapt.shrink import shrunk_arrays, shrunk_config, shrunk_model
from bonsaigpt.adapt.stretch import fitted_arrays, stretched_arrays, stretched_config, stretched_model
from bonsaigpt.adapt.vocabulary import grown_vocabulary

__all__ = [
    "finetuned_config",
    "fitted_arrays",
    "frozen",
    "grown_vocabulary",
    "layerwise",
    "on_top",
    "shrunk_arrays",
    "shrunk_config",
    "shrunk_model",
    "stretched_arrays",
    "stretched_config",
    "stretched_model",
    "tokenizer_with",
]
