"""Second moments of the linear maps of a model on real text, summed while batches stream by (``compress/moments.py``).

Sums are float64: a moment is a mean over some hundred thousand tokens, and small directions matter to a whitened fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from bonsaigpt.torch_engine.linear import Linear, linear
from bonsaigpt.torch_engine.model import GPT

__all__ = ["MapSums", "map_sums", "watching"]

_BRANCHES = {"attn.c_proj": "ln_1", "mlp.c_proj": "ln_2"}
"""Maps that write into the residual stream, and the norm whose input it is before they do."""


class MapSums:
    """Sums over tokens of x x^T, of t x^T and of ||t||^2; see ``compress.Moments``."""

    def __init__(self) -> None:
        self.C: Tensor | float = 0.0
        self.M: Tensor | float = 0.0
        self.power, self.tokens = 0.0, 0

    def add(self, x_TI: Tensor, t_TO: Tensor) -> None:
        """Some more tokens."""
        x, t = x_TI.double(), t_TO.double()
        self.C, self.M = self.C + x.T @ x, self.M + t.T @ x
        self.power += t.square().sum().item()
        self.tokens += len(x)

    def means(self) -> tuple[np.ndarray, np.ndarray, float, int]:
        """The fields of ``Moments``."""
        assert isinstance(self.C, Tensor)
        assert isinstance(self.M, Tensor)
        n = self.tokens
        return (self.C / n).cpu().numpy(), (self.M / n).cpu().numpy(), self.power / n, n


@torch.inference_mode()
def map_sums(
    model: GPT, batches: Iterable[np.ndarray], weights: Sequence[str], *, teacher: GPT | None = None, drift: bool = True
) -> dict[str, MapSums]:
    """Sums for the named weights (``transformer.h.0.mlp.c_fc.weight``) over batches of tokens (B, T). An embedding that
    is tied counts as the head that it is.

    Args:
        teacher: the model before compression. Inputs are ``model``'s, outputs wished for are the teacher's on the same
            tokens; without one they are the model's own.
        drift: of a map that writes into the residual stream wish for more: that the stream, and not the branch alone,
            be the teacher's after it (pre-norm models).
    """
    names = {weight: weight.removesuffix(".weight") for weight in weights}
    sums = {weight: MapSums() for weight in weights}
    device = next(model.parameters()).device
    norms = {w: _norm_of(n) for w, n in names.items()} if drift and teacher is not None else {}
    watched = [*names.values(), *(norm for norm in norms.values() if norm)]
    for tokens_BT in batches:
        tokens = torch.from_numpy(np.ascontiguousarray(tokens_BT, dtype=np.int64)).to(device)
        ours = _seen(model.eval(), tokens, watched)
        theirs = ours if teacher is None else _seen(teacher.eval(), tokens, watched)
        for weight, name in names.items():
            wished = theirs[name][1]
            if norm := norms.get(weight):
                wished = wished + theirs[norm][0] - ours[norm][0]
            sums[weight].add(ours[name][0], wished)
    return sums


def _norm_of(name: str) -> str | None:
    block, _, branch = name.partition(".attn") if ".attn" in name else name.partition(".mlp")
    norm = _BRANCHES.get(name.removeprefix(f"{block}."))
    return None if norm is None or not branch else f"{block}.{norm}"


def _seen(model: GPT, tokens: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output (T, ...) of the named modules in one pass; outputs of maps without their bias."""
    head = model.config.head.removesuffix(".weight")
    with watching(model, [name for name in names if name != head]) as seen:
        hidden_BTD = model.hidden(tokens)
    if head in names:
        seen[head] = hidden_BTD, linear(hidden_BTD, model.head_weight)
    return {name: (x.flatten(0, -2), _without_bias(model, name, y).flatten(0, -2)) for name, (x, y) in seen.items()}


def _without_bias(model: GPT, name: str, output: Tensor) -> Tensor:
    module = model.get_submodule(name)
    bias = module.bias if isinstance(module, Linear) else None
    return output if bias is None else output - bias


@contextmanager
def watching(model: GPT, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While entered, the last input and output of the named modules."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0], output

        return hook

    with ExitStack() as hooks:
        for name in dict.fromkeys(names):
            hooks.callback(model.get_submodule(name).register_forward_hook(note(name)).remove)
        yield seen
