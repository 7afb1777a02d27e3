"""Trained models made into others: a longer context."""

from bonsaigpt.adapt.stretch import fitted_arrays, stretched_arrays, stretched_config, stretched_model

__all__ = ["fitted_arrays", "stretched_arrays", "stretched_config", "stretched_model"]
