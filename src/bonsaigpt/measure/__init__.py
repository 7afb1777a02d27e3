"""Numbers about a model: its loss over a whole split, and what it costs."""

from bonsaigpt.measure.accounting import flops_per_token
from bonsaigpt.measure.evaluate import Evaluation, badness, evaluate

__all__ = ["Evaluation", "badness", "evaluate", "flops_per_token"]
