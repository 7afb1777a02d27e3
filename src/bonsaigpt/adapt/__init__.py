"""Trained models made into others: a longer context."""

from bonsaigpt.adapt.stretch import stretched_arrays, stretched_config, stretched_model

__all__ = ["stretched_arrays", "stretched_config", "stretched_model"]
