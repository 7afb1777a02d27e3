"""Trained models made into others: tuned on examples, or at a longer context."""

from bonsaigpt.adapt.finetune import finetuned_config, frozen, layerwise, tokenizer_with
from bonsaigpt.adapt.stretch import fitted_arrays, stretched_arrays, stretched_config, stretched_model
from bonsaigpt.adapt.vocabulary import grown_vocabulary

__all__ = [
    "finetuned_config",
    "fitted_arrays",
    "frozen",
    "grown_vocabulary",
    "layerwise",
    "stretched_arrays",
    "stretched_config",
    "stretched_model",
    "tokenizer_with",
]
