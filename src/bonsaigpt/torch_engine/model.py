"""The GPT: embeddings, blocks, head. Loss, optimizer, schedule and sampling are elsewhere, on purpose.

The modules hold memory only; names and shapes repeat spec.py (a test holds the two together) and every value comes
from there or from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, RopePosition, hidden_side
from bonsaigpt.kv import AttendingCache, KVCache
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.structure import MATERIALISED, Structure, merge, structures
from bonsaigpt.torch_engine.attention import Attention, Seen, Where, document_mask, masks
from bonsaigpt.torch_engine.carry import Carry
from bonsaigpt.torch_engine.experts import Experts
from bonsaigpt.torch_engine.latent import LatentHeads
from bonsaigpt.torch_engine.linear import Linear, Norm, linear
from bonsaigpt.torch_engine.linear_attention import LinearHeads
from bonsaigpt.torch_engine.mlp import MLP
from bonsaigpt.torch_engine.rope import rotation
from bonsaigpt.torch_engine.structured import Weight, dense, new_weight

__all__ = ["GPT", "build", "build_fast", "load_weights", "weights"]


class Embedding(nn.Module):
    """A table of vectors."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.weight = new_weight(structure)

    @property
    def table(self) -> Tensor:
        """All rows."""
        return dense(self.weight)

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.table)


_ATTENTIONS = {"softmax": Attention, "latent": LatentHeads, "linear": LinearHeads}


class Block(nn.Module):
    """Attention and MLP, each a branch beside the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, made: Mapping[str, Structure]) -> None:
        super().__init__()
        self.post_norm = config.norm_position == "post"
        self.ln_1 = Norm(config)
        self.attn = _ATTENTIONS[config.attention.kind](config, layer, made)
        self.ln_2 = Norm(config)
        self.mlp = (MLP if config.experts == 1 else Experts)(config, layer, made)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, where: Where, shared: Seen | None) -> tuple[Tensor, Seen | None]:
        """The stream after the block, and the keys and values for the layers that share them."""
        if self.post_norm:  # GPT-1, Vaswani et al. 2017: gradients pass through every normalisation
            y_BTD, shared = self.attn(x_BTD, where, shared)
            x_BTD = self.ln_1(x_BTD + self.drop(y_BTD))
            return self.ln_2(x_BTD + self.drop(self.mlp(x_BTD, where.loads))), shared
        y_BTD, shared = self.attn(self.ln_1(x_BTD), where, shared)
        x_BTD = x_BTD + self.drop(y_BTD)
        return x_BTD + self.drop(self.mlp(self.ln_2(x_BTD), where.loads)), shared


class Transformer(nn.Module):
    """Everything but the head; the name keeps nanoGPT's parameter paths."""

    def __init__(self, config: ModelConfig, made: Mapping[str, Structure]) -> None:
        super().__init__()
        self.wte = Embedding(made["transformer.wte.weight"])
        if config.position.kind == "learned":
            self.wpe = Embedding(made["transformer.wpe.weight"])
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer, made) for layer in range(config.n_layer))
        self.ln_f = Norm(config)


class GPT(nn.Module):
    """A GPT of the given configuration, its memory not yet filled (see ``build``)."""

    recompute: bool
    """While training, keep only the input of each block and compute its activations again in the backward pass."""
    through: AttendingCache | None
    """What rows without a cache or a memory are read through: in training, what a cache will keep of them."""
    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.through = None
        made = structures(config)
        self.transformer = Transformer(config, made)
        if not config.tie_embeddings:
            self.lm_head = Linear(made["lm_head.weight"], bias=False)
        if isinstance(config.position, RopePosition):
            cos, sin = rotation(config.position, config.rope_width, torch.arange(config.block_size))
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)

    def attend_plainly(self, plain: bool) -> None:
        """Compute attention by plain matrix products instead of torch's fused kernel."""
        for module in self.modules():
            if isinstance(module, Attention | LatentHeads):
                module.plain = plain

    @property
    def head_weight(self) -> Weight:
        """The matrix from the last hidden state to the logits, (V, D)."""
        return self.transformer.wte.weight if self.config.tie_embeddings else self.lm_head.weight

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cache: KVCache | AttendingCache | None = None,
        documents_BT: Tensor | None = None,
        carry: Carry | None = None,
        streams: list[Tensor] | None = None,
        loads: list[Tensor] | None = None,
    ) -> Tensor:
        """The normalised last hidden state, (B, T, D). Positions default to 0 .. T-1, or go on from the cache.

        ``documents_BT``: the document of each token, numbered upwards along a row. Attention stays inside it, and its
        positions start at 0: so a document in a row gives what it gives alone, and is seen where generation starts.
        ``carry``: what stood before these rows, and where positions go on.
        ``streams``: takes the residual stream after each block, (B, T, D).
        ``loads``: takes of each layer of experts how unevenly each row's tokens are spread over them, (B,).
        """
        B, T = tokens_BT.shape
        mask = None
        if documents_BT is not None:
            mask = document_mask(documents_BT)
            positions_BT = mask[:, 0].sum(dim=-1) - 1  # how many of its document stand before
        if cache is None and carry is None:
            cache = self.through
        elif positions_BT is None and cache is not None:
            steps = torch.arange(cache.length, cache.length + T, device=tokens_BT.device)
            positions_BT = steps.expand(B, T)
        if carry is not None:
            positions_BT, cache = carry.positions_BS, None if carry.has_inputs else carry
        x_BTD = self.transformer.wte(tokens_BT)
        turned = None
        if self.config.position.kind == "learned":
            wpe = self.transformer.wpe
            x_BTD = x_BTD + (wpe.table[:T] if positions_BT is None else wpe(positions_BT))
        elif self.config.position.kind == "rope" and not (isinstance(cache, AttendingCache) and cache.turns):
            if carry is not None:  # no table is long enough
                assert isinstance(self.config.position, RopePosition)
                cos, sin = rotation(self.config.position, self.config.rope_width, carry.positions_BS)
                turned = (cos[:, :, None], sin[:, :, None])
            elif positions_BT is None:
                turned = (self.cos[:T, None], self.sin[:T, None])
            else:
                turned = (self.cos[positions_BT][:, :, None], self.sin[positions_BT][:, :, None])
        x_BTD = self.transformer.drop(x_BTD)
        before = carry.before if carry is not None and carry.has_inputs else None
        within: dict[int | None, Tensor | None] = {None: mask}  # of a cache they follow from the positions of its slots
        if cache is None or isinstance(cache, AttendingCache):
            within = masks(self.config, T, mask, tokens_BT.device)
        where = Where(positions_BT, turned, cache, within, before, loads)
        shared: Seen | None = None
        for block in self.transformer.h:
            if self.recompute and self.training:  # Chen et al. 2016: keep the input, compute the rest again
                x_BTD, shared = checkpoint(block, x_BTD, where, shared, use_reentrant=False)
            else:
                x_BTD, shared = block(x_BTD, where, shared)
            if streams is not None:
                streams.append(x_BTD)
        return self.transformer.ln_f(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """From the last hidden state (..., D) to logits (..., V): padding cut off, muP's multiplier, soft cap."""
        config = self.config
        if config.mup_base is not None:
            hidden = hidden / config.width_ratio
        logits = linear(hidden, self.head_weight)[..., : config.vocabulary]
        if config.logit_softcap:  # Gemma Team 2024, section 2
            logits = config.logit_softcap * torch.tanh(logits / config.logit_softcap)
        return logits

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cache: KVCache | AttendingCache | None = None,
        documents_BT: Tensor | None = None,
        carry: Carry | None = None,
    ) -> Tensor:
        """Logits of the next token at every position, (B, T, V); see ``hidden``."""
        hidden_BTD = self.hidden(
            tokens_BT, positions_BT=positions_BT, cache=cache, documents_BT=documents_BT, carry=carry
        )
        return self.logits(hidden_BTD)


def build(config: ModelConfig, *, seed: int | None = None, values: Arrays | None = None) -> GPT:
    """A model on the CPU with every value set: from ``values``, or fresh ones that depend on ``seed`` alone."""
    model = GPT(config)
    if values is None:
        if seed is None:
            raise ValueError("give a seed or values")
        made = ((p.name, initial_value(p, seed)) for p in parameters(config) if p.tied_to is None)
        load_weights(model, made)
    else:
        load_weights(model, values.items())
    return model


def build_fast(config: ModelConfig, values: Arrays) -> GPT:
    """A model to evaluate or to generate with. Weights whose factors would take more work for a token than the matrix
    are merged into it, once: decoding is never slower than with dense ones. So are those of experts, which are matrices
    by the time that a token finds its own."""

    def is_slower(name: str, made: Structure) -> bool:
        routed = config.experts > 1 and hidden_side(name) is not None
        return routed or made.macs(made.cheapest) >= made.macs(MATERIALISED)

    config, values = merge(config, values, which=is_slower)
    return build(config, values=values)


@torch.no_grad()
def load_weights(model: GPT, values: Iterable[tuple[str, object]]) -> None:
    """Copy NumPy arrays into the parameters of the same names; every parameter must be named once."""
    left = dict(model.named_parameters())
    for name, array in values:
        left.pop(name).copy_(torch.as_tensor(array))
    if left:
        raise ValueError(f"no value was given for {sorted(left)}")


def weights(model: GPT) -> Arrays:
    """The parameters as float32 NumPy arrays of their own memory, tied ones once, in the order of the spec."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in model.named_parameters()}
