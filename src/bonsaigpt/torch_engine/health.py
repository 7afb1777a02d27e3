"""What a step tells of its health: sums and norms that stay on the device; ``measure/health.py`` says what they mean.

Gradients are those that the step has anyway, before clipping. Updates are seen at some values of every tensor, copied
before the optimizer changes them: whole copies would take as much memory as the weights. Activations come from another
forward pass, of a few rows of the batch, through the model as it is and without dropout: nothing is hooked into the
passes that train, so these stay compiled, and what the run learns does not depend on who looks. Under ``train.memory``
these rows are read without what stood before them, and under ``train.kv`` with exact keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bonsaigpt.spec import parameters
from bonsaigpt.torch_engine.attention import Attention, Seen, Where, scores
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.experts import Experts
from bonsaigpt.torch_engine.latent import LatentHeads
from bonsaigpt.torch_engine.mlp import MLP
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.parallel import Layout
from bonsaigpt.torch_engine.structured import FactoredWeight, Weight, dense
from bonsaigpt.trace import Look

__all__ = ["Checkup", "attention_entropy", "participation_ratio", "to_host"]

_SAMPLES = 2**16
"""Values of a tensor at most whose update is seen, evenly spaced."""
_QUERIES = 256
"""Positions of a row at most whose attention is seen, evenly spaced: all pairs of a long context would not fit."""


class Checkup:
    """Of one step, on every process alike. ``figures`` fill as the step goes on.

    ``grad_norm``, ``weight_norm``, ``update``: one number for each parameter, in the order of the spec; the last is
    the norm of the update over that of the weight. ``rank/NAME``: participation ratio of a weight; ``terms/NAME``:
    norms of the factors of each of its terms. ``entropy/LAYER``: of each head, mean relative entropy, where attention
    is a softmax. ``on/LAYER`` and ``far/LAYER``: of each hidden unit, share of the tokens above ``look.off`` and
    ``look.far``; ``tokens``: how many.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, layout: Layout) -> None:
        self._model, self._layout = model, layout
        # Not the modules' order, in which the factors of a weight come after a bias.
        self._parameters = [layout.parameters[p.name] for p in parameters(model.config) if p.tied_to is None]
        self._before = [_some(p).clone() for p in self._parameters]
        gradients = [p.grad if p.grad is not None else p.new_zeros(1) for p in self._parameters]
        self.figures: dict[str, Tensor] = {
            "grad_norm": self._norms(gradients),
            "weight_norm": self._norms(self._parameters),
        }

    @torch.no_grad()
    def activations(self, tokens_BT: Tensor, documents_BT: Tensor | None, look: Look, placement: Placement) -> None:
        """Compute some rows once more, and look at the weights on the way, which under FSDP are whole only then."""
        model, was_training = self._model, self._model.training
        model.eval()
        through, model.through = model.through, None
        with ExitStack() as closing, self._layout.whole_weights():
            for layer, block in enumerate(model.transformer.h):
                assert isinstance(block.mlp, MLP)
                if isinstance(block.attn, Attention | LatentHeads):  # linear attention has no softmax
                    closing.callback(block.attn.register_forward_pre_hook(self._attention(layer)).remove)
                for handle in (
                    self._watch_units(block.mlp, layer, look),
                    block.register_forward_pre_hook(self._weights(f"transformer.h.{layer}.")),
                ):
                    closing.callback(handle.remove)
            with placement.autocast():
                model.hidden(tokens_BT, documents_BT=documents_BT)
            for name, module in model.named_modules():
                if ".h." not in name and isinstance(weight := getattr(module, "weight", None), Weight):
                    self._see(f"{name}.weight", weight)
        self.figures["tokens"] = torch.tensor([float(tokens_BT.numel())], device=tokens_BT.device)
        model.train(was_training)
        model.through = through

    @torch.no_grad()
    def updates(self) -> None:
        """After the optimizer's step."""
        after = [_some(p) for p in self._parameters]
        change = [new - old for new, old in zip(after, self._before, strict=True)]
        self.figures["update"] = self._norms(change) / self._norms(self._before)

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        norms = torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensors])
        return self._layout.over_shards(norms.square()).sqrt()

    # ------------------------------------------------------------------ hooks

    def _attention(self, layer: int) -> Callable[..., None]:
        def see(module: Attention | LatentHeads, inputs: tuple[Tensor, Where, Seen | None]) -> None:
            q_BHTK, seen, mask = module.compared(*inputs)
            self.figures[f"entropy/{layer}"] = attention_entropy(
                q_BHTK, seen.k_BGSK, mask, sinks_H=module.sinks, scale=module.scale
            )

        return see

    def _watch_units(self, mlp: MLP, layer: int, look: Look) -> RemovableHandle:
        if isinstance(mlp, Experts):
            return mlp.register_forward_pre_hook(self._experts(layer, look))
        gate = mlp.c_gate if mlp.kind == "swiglu" else mlp.c_fc
        return gate.register_forward_hook(self._units(layer, look))

    def _units(self, layer: int, look: Look) -> Callable[..., None]:
        def see(module: nn.Module, inputs: Any, output_BTF: Tensor) -> None:
            units_NF = output_BTF.flatten(0, -2)
            # Not the share above: what is no number is not off, and not dead.
            self.figures[f"on/{layer}"] = 1.0 - (units_NF <= look.off).float().mean(dim=0)
            self.figures[f"far/{layer}"] = (units_NF > look.far).float().mean(dim=0)

        return see

    def _experts(self, layer: int, look: Look) -> Callable[..., None]:
        """A unit is off where its expert is not met, and what it is far at counts of the tokens that it meets."""

        def see(module: Experts, inputs: Any) -> None:
            units_NEF, meets_NE1 = module.units(inputs[0])
            on, far = ~(units_NEF <= look.off) & meets_NE1, (units_NEF > look.far) & meets_NE1
            self.figures[f"on/{layer}"] = on.float().mean(dim=0).flatten()
            self.figures[f"far/{layer}"] = (far.sum(dim=0) / meets_NE1.sum(dim=0).clamp_min(1)).flatten()

        return see

    def _weights(self, prefix: str) -> Callable[..., None]:
        def see(block: nn.Module, inputs: Any) -> None:
            for name, module in block.named_modules():
                if isinstance(weight := getattr(module, "weight", None), Weight):
                    self._see(f"{prefix}{name}.weight", weight)

        return see

    def _see(self, name: str, weight: Weight) -> None:
        with torch.autocast(next(iter(self._parameters)).device.type, enabled=False):
            matrix = dense(weight)
            if matrix.ndim == 2:
                self.figures[f"rank/{name}"] = participation_ratio(matrix)
            if isinstance(weight, FactoredWeight):
                self.figures[f"terms/{name}"] = weight.term_norms()


def _some(tensor: Tensor) -> Tensor:
    """At most ``_SAMPLES`` values. An odd step walks through all columns of a matrix."""
    return tensor.detach().flatten()[:: math.ceil(max(1, tensor.numel()) / _SAMPLES) | 1]


def participation_ratio(matrix: Tensor) -> Tensor:
    """(sum s^2)^2 / sum s^4 over the singular values s: how many directions a matrix uses; 0 of a zero matrix, (1,).

    One product with the matrix itself: an exact spectrum would take longer than the step.
    """
    matrix = matrix.float()
    scaled = matrix / matrix.norm().clamp_min(torch.finfo(torch.float32).tiny)
    gram = scaled.mT @ scaled if scaled.shape[0] > scaled.shape[1] else scaled @ scaled.mT
    squares = gram.square().sum()
    return torch.where(squares > 0, 1.0 / squares, 0.0)[None]


def attention_entropy(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    mask: Tensor | None,
    *,
    sinks_H: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Entropy of the attention of each head over the largest that there could be, log of the number of tokens that may
    be seen; mean over the queries that have a choice, (H,). A sink counts as one token more. See ``attend``."""
    T = q_BHTK.shape[2]
    at_Q = torch.arange(T - 1, -1, -math.ceil(T / _QUERIES), device=q_BHTK.device)
    if mask is None:
        mask = (at_Q[:, None] >= torch.arange(T, device=at_Q.device))[None, None]
    else:
        mask = mask[:, :, at_Q]
    scores_BHQT = scores(q_BHTK[:, :, at_Q].float(), k_BGTK.float(), mask, sinks_H=sinks_H, scale=scale)
    entropy_BHQ = torch.special.entr(scores_BHQT.softmax(dim=-1)).sum(dim=-1)
    seen_BHQ = (mask.sum(dim=-1) + (sinks_H is not None)).expand_as(entropy_BHQ)
    relative = torch.where(seen_BHQ > 1, entropy_BHQ / seen_BHQ.clamp_min(2).log(), 0.0)
    return relative.sum(dim=(0, 2)) / (seen_BHQ > 1).sum(dim=(0, 2))


def to_host(figures: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """All of them in one transfer, float32."""
    values = torch.cat([tensor.float().flatten() for tensor in figures.values()]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in figures.values()])
    parts = np.split(values, ends[:-1])
    return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(figures.items(), parts, strict=True)}
