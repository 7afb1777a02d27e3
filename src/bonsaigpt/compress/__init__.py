"""Making trained models smaller: factors for trained weights (NumPy, float64, deterministic), and from these to a run.

subject = Subject(engine, config.model, values, source)
offers = price(subject, ("kronecker",), ["*.mlp.*"], share=0.25)
plan, _ = choose(offers, budget=100_000)
compressed = replace_blocks(subject, plan)
healing = healing_config(config, compressed, steps=500, teacher="runs/mine@2000")
"""

from bonsaigpt.compress.als import KroneckerFit, activation_aware
from bonsaigpt.compress.exact import output_error, truncated_svd, van_loan, whitened_svd
from bonsaigpt.compress.fit import fit, fit_rows, strongest_columns
from bonsaigpt.compress.moments import Moments
from bonsaigpt.compress.permute import like_units, permute_hidden
from bonsaigpt.compress.plan import Plan, read_plan, write_plan
from bonsaigpt.compress.pricing import choose, price
from bonsaigpt.compress.replace import Compressed, replace_blocks
from bonsaigpt.compress.run import healing_config, write_run
from bonsaigpt.compress.subject import Subject
from bonsaigpt.compress.upcycle import upcycle, upcycled

__all__ = [
    "Compressed",
    "KroneckerFit",
    "Moments",
    "Plan",
    "Subject",
    "activation_aware",
    "choose",
    "fit",
    "fit_rows",
    "healing_config",
    "like_units",
    "output_error",
    "permute_hidden",
    "price",
    "read_plan",
    "replace_blocks",
    "strongest_columns",
    "truncated_svd",
    "upcycle",
    "upcycled",
    "van_loan",
    "whitened_svd",
    "write_plan",
    "write_run",
]
