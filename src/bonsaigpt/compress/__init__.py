"""Finding good factors for trained weights: NumPy, float64, deterministic."""

from bonsaigpt.compress.als import KroneckerFit, activation_aware
from bonsaigpt.compress.exact import output_error, truncated_svd, van_loan, whitened_svd
from bonsaigpt.compress.fit import fit, strongest_columns
from bonsaigpt.compress.moments import Moments
from bonsaigpt.compress.permute import like_units, permute_hidden

__all__ = [
    "KroneckerFit",
    "Moments",
    "activation_aware",
    "fit",
    "like_units",
    "output_error",
    "permute_hidden",
    "strongest_columns",
    "truncated_svd",
    "van_loan",
    "whitened_svd",
]
