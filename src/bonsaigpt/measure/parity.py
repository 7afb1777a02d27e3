"""Whether an engine computes what PyTorch computes, level by level and tensor by tensor, for any model.

The truth is a run of the same thing in float64. An engine in float32 must be as near to it as PyTorch in float32 is,
within a factor: the two add in different orders, so their errors are of one size and not equal. Where PyTorch happens
to be exact, the error of one rounding of the tensor's largest element stands in. Weights alone must be equal in every
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bonsaigpt.config import GuardConfig, ModelConfig, MuonMatrices, RunConfig, derive
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.engines import Engine
from bonsaigpt.trace import Observed

__all__ = ["FACTOR", "Difference", "comparable", "differences", "parity", "probe"]

FACTOR = 16
"""Errors of an engine against those of PyTorch in float32."""
_ROUNDING = 2.0**-24
"""Of float32, relative."""

Arrays: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one tensor is from the truth: the largest error of any element."""

    level: str
    name: str
    error: float
    reference: float
    """PyTorch's error in float32."""
    allowed: float
    size: float
    """The tensor's largest element."""

    @property
    def parts(self) -> bool:
        """Whether the engines part here."""
        return not self.error <= self.allowed

    @property
    def closeness(self) -> float:
        """The error as a share of what is allowed; above 1 the engines part."""
        return self.error / self.allowed if self.allowed else (np.inf if self.error else 0.0)

    def __str__(self) -> str:
        return f"{self.name}: {self.error:.2e}, allowed {self.allowed:.2e}"


def differences(truth: Observed, reference: Observed, found: Observed) -> list[Difference]:
    """Every tensor in the order of the computation.

    Raises:
        ValueError: the engines do not name the same tensors.
    """
    compared: list[Difference] = []
    for level, tensors in truth.items():
        if others := tensors.keys() ^ found[level].keys():
            raise ValueError(f"only one of the engines has these {level}: {sorted(others)}")
        for name, value in tensors.items():
            size, theirs = _largest(value), _largest(reference[level][name] - value)
            compared.append(
                Difference(
                    level=level,
                    name=name,
                    error=_largest(found[level][name] - value),
                    reference=theirs,
                    allowed=0.0 if level == "weights" else FACTOR * max(theirs, size * _ROUNDING),
                    size=size,
                )
            )
    return compared


def parity(
    engine: Engine,
    reference: Engine,
    config: RunConfig,
    model: dict[str, np.ndarray],
    optimizer: dict[str, np.ndarray],
    batch: Batch,
    *,
    advance: Callable[[str, int, int], None],
) -> list[Difference]:
    """One step of a saved state in an engine, held against ``reference``, which computes in float64 too. ``config`` is
    a ``comparable`` one."""
    runs = ((reference, True, "float64"), (reference, False, reference.name), (engine, False, engine.name))
    seen: list[Observed] = []
    for done, (each, double, words) in enumerate(runs):
        advance(f"a step in {words}", done, len(runs))
        seen.append(each.observe(config, model, optimizer, batch, double=double))
    return differences(*seen)


def comparable(config: RunConfig) -> RunConfig:
    """The run with everything left out that one engine or one device alone has: noise, narrow products, kernels, a
    teacher, preferences, a memory; in two micro-batches of a row each."""
    matrices = config.optim.matrices
    wide = {"matrices": matrices.model_dump() | {"precision": "fp32"}} if isinstance(matrices, MuonMatrices) else {}
    return derive(
        config,
        model={"dropout": 0.0},
        optim={"distill": {"kind": "none"}, "objective": {"kind": "likelihood"}, **wide},
        train={
            "batch_size": 2,
            "micro_batch": 1,
            "precision": "fp32",
            "compile": "off",
            "workers": 1,
            "attention_kernel": "sdpa",
            "parallel": "ddp",
            "tensor_parallel": 1,
            "memory": {"kind": "none"},
            "kv": "",
            # A step on random tokens may look like a spike.
            "guard": GuardConfig(spike=0.0).model_dump(),
        },
    )


def probe(config: ModelConfig, *, length: int, seed: int = 0) -> Batch:
    """Two rows of random tokens and targets, of which a fifth do not count."""
    generator = np.random.default_rng(seed)
    tokens, targets = generator.integers(0, config.vocabulary, (2, 2, length))
    targets[generator.random(targets.shape) < 0.2] = IGNORE
    targets[:, 0] = tokens[:, -1]  # so that some do
    return Batch(tokens_BT=tokens, targets_BT=targets, count=int(np.count_nonzero(targets != IGNORE)))


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))
