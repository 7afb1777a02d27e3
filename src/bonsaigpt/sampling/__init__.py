"""From logits to a token: the rules, their order, and where the randomness comes from.

The rules act in this order, each on what the one before it left (``rules.py`` has formulas and papers):

1. penalties on tokens that occurred: repetition, then frequency and presence;
2. the logit bias;
3. the constraint, a pattern that the text must follow: what it forbids gets probability zero;
4. the temperature;
5. top-k, 6. top-p, 7. min-p, 8. typical: each cuts the distribution and makes it sum to 1 again;
9. the draw, by inverting the cumulative distribution; at temperature 0 the likeliest token after rule 3.

The noise at position ``t`` of a text is a function of (seed, row, t) alone, so the same seed gives the same text
whatever else is generated beside it, in one piece or streamed, cached or not.
"""

from bonsaigpt.sampling.chooser import Chooser, Constraint, choose_rows, log_probabilities
from bonsaigpt.sampling.patterns import Pattern, json_schema, regular_expression
from bonsaigpt.sampling.settings import Sampling

__all__ = [
    "Chooser",
    "Constraint",
    "Pattern",
    "Sampling",
    "choose_rows",
    "json_schema",
    "log_probabilities",
    "regular_expression",
]
