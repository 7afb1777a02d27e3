"""How to draw a token: every rule's setting, checked where it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bonsaigpt.errors import GenerateError

__all__ = ["Sampling"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw a token. What is left at its default changes nothing and costs nothing."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token, the first of equals. Between 0 and 1e-30 there is none."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only; ties with the k-th stay in (Fan et al. 2018)."""
    top_p: float | None = None
    """Draw from the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Draw from the tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024)."""
    typical_p: float | None = None
    """Draw from the smallest set of tokens whose surprise is nearest to the entropy and whose probability reaches
    this (Meister et al. 2022)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of all tokens of prompt and text (Keskar et al. 2019)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it was generated, in nats."""
    presence_penalty: float = 0.0
    """Taken from a token's logit once if it was generated at all, in nats."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids, in nats."""
    seed: int = 0
    """Of the noise."""
    row: int = 0
    """Which of several texts of one seed; each has noise of its own."""

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 1e-30 <= self.temperature < math.inf):
            raise GenerateError(f"temperature = {self.temperature} cannot be: use 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise GenerateError(f"top_k = {self.top_k} leaves no token: use 1 or more, or leave it out")
        for name in ("top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise GenerateError(f"{name} = {value} is no probability: use more than 0 and at most 1")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise GenerateError(
                f"repetition_penalty = {self.repetition_penalty} cannot be: use more than 0; 1 changes nothing, "
                "1.2 discourages what was said"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise GenerateError(f"{name} = {getattr(self, name)} cannot be: use a finite number of nats, e.g. 0.5")
        for token, bias in self.logit_bias.items():
            if not math.isfinite(bias):
                raise GenerateError(f"the logit bias {bias} of token {token} cannot be: use a finite one, e.g. -100")
        if self.row < 0:
            raise GenerateError(f"row = {self.row} cannot be: rows are 0, 1, 2, ...")

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on what was said before."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def cuts(self) -> bool:
        """Whether some tokens are kept out of the draw."""
        return self.top_k is not None or self.top_p is not None or self.min_p is not None or self.typical_p is not None
