"""The GPT's configuration: sizes, and one tagged union for each part of a block."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.attention import AttentionConfig, LatentAttention, SoftmaxAttention
from bonsaigpt.config.base import Config
from bonsaigpt.config.position import LearnedPosition, PositionConfig
from bonsaigpt.config.structure import (
    DenseStructure,
    NarrowStructure,
    StructureConfig,
    WeightStructure,
    check_experts,
    check_names,
    chosen,
    hidden_side,
)
from bonsaigpt.errors import ConfigError

__all__ = ["PRESETS", "ExpertsMLP", "GeluMLP", "LayerNorm", "ModelConfig", "RMSNorm", "ReLU2MLP", "SwiGLUMLP"]


class GeluMLP(Config):
    """GPT-2's MLP: linear, GELU, linear."""

    kind: Literal["gelu"] = "gelu"
    """Which MLP."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden units; none means 4 * n_embd (swiglu: 8/3 * n_embd, up to a multiple of 16)."""
    approximate: Literal["none", "tanh"] = "none"
    """GELU exactly, or by OpenAI's tanh formula; checkpoints of GPT-2 use tanh."""


class SwiGLUMLP(Config):
    """Gated MLP, SwiGLU (Shazeer 2020): silu(x W_gate) * (x W_fc), then W_proj."""

    kind: Literal["swiglu"] = "swiglu"
    """Which MLP."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden units; none means 8/3 * n_embd, up to a multiple of 16: as many weights as gelu's default."""


class ReLU2MLP(Config):
    """Linear, squared ReLU (So et al. 2021, Primer), linear."""

    kind: Literal["relu2"] = "relu2"
    """Which MLP."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden units; none means 4 * n_embd."""


class ExpertsMLP(Config):
    """Several MLPs in place of one, a mixture of experts: every token goes through a few, which a router chooses for it
    (Shazeer et al. 2017). Their matrices stand in one, so where ``model.structure`` makes that of factors they share
    them: Kronecker experts own their A and share B."""

    kind: Literal["moe"] = "moe"
    """Which MLP."""
    each: Annotated[GeluMLP | SwiGLUMLP | ReLU2MLP, Field(discriminator="kind")] = GeluMLP()
    """What every expert is."""
    experts: int = Field(default=4, ge=2)
    """MLPs that there are."""
    active: int = Field(default=2, ge=1)
    """MLPs that a token goes through."""
    balance: float = Field(default=0.01, ge=0.0)
    """Weight of the loss that spreads the tokens of each sequence over the experts (DeepSeek-AI 2024, equation 17); 0
    means none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.active > self.experts:
            raise ValueError(f"model.mlp.active = {self.active} of {self.experts} experts: use at most as many")
        return self


class LayerNorm(Config):
    """Layer normalisation (Ba et al. 2016) with a scale, and a bias where model.bias is true."""

    kind: Literal["layernorm"] = "layernorm"
    """Which normalisation."""
    eps: float = Field(default=1e-5, gt=0.0)
    """Added to the variance."""
    scale: bool = True
    """Learn a factor for each channel; the next matrix can do without."""


class RMSNorm(Config):
    """Root-mean-square normalisation (Zhang and Sennrich 2019) with a scale."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    """Which normalisation."""
    eps: float = Field(default=1e-5, gt=0.0)
    """Added to the mean square."""
    scale: bool = True
    """Learn a factor for each channel; the next matrix can do without."""


PRESETS: dict[str, dict[str, int]] = {
    "gpt-nano": {"n_layer": 3, "n_head": 3, "n_embd": 48},
    "gpt-micro": {"n_layer": 4, "n_head": 4, "n_embd": 128},
    "gpt-mini": {"n_layer": 6, "n_head": 6, "n_embd": 192},
    "baby": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "block_size": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "block_size": 1024},
}
"""Sizes by name: minGPT's three small ones, nanoGPT's baby, and the four of GPT-2."""


class ModelConfig(Config):
    """The GPT itself: GPT-2's blocks by default, each part a switch."""

    preset: Literal[
        "gpt-nano", "gpt-micro", "gpt-mini", "baby", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", None
    ] = None
    """A size by name; fields that are given as well win over it."""
    n_layer: int = Field(default=4, ge=1)
    """Transformer blocks."""
    n_head: int = Field(default=4, ge=1)
    """Query heads of each attention."""
    n_embd: int = Field(default=128, ge=1)
    """Width of the residual stream; divisible by n_head, unless attention.head_width is given."""
    block_size: int = Field(default=64, ge=1)
    """Longest context, in tokens."""
    vocab_size: int | None = Field(default=None, ge=1)
    """Size of the vocabulary; none means the tokenizer's."""
    bias: bool = False
    """Biases in the linear maps and LayerNorms, as GPT-2 has."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping an activation while training (embeddings, attention, residual branches)."""
    tie_embeddings: bool = True
    """The output head reads the token embedding's matrix instead of one of its own."""
    vocab_multiple: int = Field(default=1, ge=1)
    """Pad the embedding and the head to a multiple of so many rows, which suits GPUs (64 or 128); the model never
    sees or writes the padding."""
    logit_softcap: float = Field(default=0.0, ge=0.0)
    """Bend the logits smoothly below this size, c * tanh(logits / c) (Gemma 2); 0 means no bound."""
    residual_init: Literal["scaled", "zero"] = "scaled"
    """Start the matrices that write into the residual stream small (GPT-2), or at zero, so that each block starts
    as the identity (Zhang et al. 2019, Fixup)."""
    mup_base: int | None = Field(default=None, ge=1)
    """Width at which learning rate and initialisation were tuned: at any other n_embd they are transferred by muP
    (Yang et al. 2022). Keep the width of a head and let n_head grow. None means the standard parametrisation."""
    norm_position: Literal["pre", "post"] = "pre"
    """Normalise the input of each branch (GPT-2), or the sum after it (GPT-1; trains worse, see the handbook)."""
    attention: AttentionConfig = SoftmaxAttention()
    mlp: Annotated[GeluMLP | SwiGLUMLP | ReLU2MLP | ExpertsMLP, Field(discriminator="kind")] = GeluMLP()
    position: PositionConfig = LearnedPosition()
    norm: Annotated[LayerNorm | RMSNorm, Field(discriminator="kind")] = LayerNorm()
    structure: dict[str, StructureConfig] = Field(default={})
    """What weights are made of, by name (globs; the last match wins): e.g. {"*.mlp.c_fc.weight" = {kind = "kronecker",
    a_shape = [32, 8], terms = 64}}; dense where nothing is said."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """The sizes of a preset; and attention of which no kind is said is the softmax."""
        if isinstance(data, dict) and isinstance(data.get("preset"), str):
            data = PRESETS.get(data["preset"], {}) | data
        if isinstance(data, dict) and isinstance(data.get("attention"), dict):
            data = data | {"attention": {"kind": "softmax"} | data["attention"]}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.own_head_width is None and self.n_embd % self.n_head:
            below = self.n_embd - self.n_embd % self.n_head
            near = " or ".join(str(n) for n in (below, below + self.n_head) if n)
            raise ValueError(
                f"model.n_embd = {self.n_embd} is not divisible by model.n_head = {self.n_head}: use {near}"
            )
        if self.n_head % self.n_kv_head:
            divisors = [d for d in range(1, self.n_head + 1) if self.n_head % d == 0]
            raise ValueError(
                f"model.attention.n_kv_head = {self.n_kv_head} does not divide model.n_head = {self.n_head}: "
                f"use one of {divisors}"
            )
        if self.position.kind == "rope" and self.head_width % 2 and self.rope_width == self.head_width:
            raise ValueError(
                f"rope turns pairs of channels, but a head has {self.head_width} (model.n_embd / model.n_head, or "
                "model.attention.head_width): choose them so that it is even"
            )
        if self.position.kind == "rope" and self.position.scaling.kind == "ntk" and self.rope_width == 2:
            raise ValueError(
                "model.position.scaling.kind = 'ntk' changes the base of the slower pairs, but there is one pair only "
                "(of 2 channels): use 'linear'"
            )
        if isinstance(self.attention, LatentAttention) and self.attention.rope_width and self.position.kind != "rope":
            raise ValueError(
                f"model.attention.rope_width has no use under model.position.kind = '{self.position.kind}': leave it "
                "out, or use rope"
            )
        if self.structure:
            shapes = self.weight_shapes
            check_names(self.structure, shapes, (f"transformer.h.{layer}.mlp" for layer in range(self.n_layer)))
            for name, (out, into) in shapes.items():
                if out:  # else the vocabulary is not known yet; the configuration is checked again when it is
                    setting = self.structure_of(name)
                    setting.check(name, out, into)
                    if isinstance(self.mlp, ExpertsMLP) and (side := hidden_side(name)) is not None:
                        check_experts(setting, name, side, self.mlp.experts)
        return self

    @property
    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """Every weight that is looked up in or multiplied with: its name, outputs and inputs. In embeddings and head,
        outputs are rows of the vocabulary: 0 as long as it is not known."""
        rows = 0 if self.vocab_size is None else self.vocabulary_rows
        shapes = {"transformer.wte.weight": (rows, self.n_embd)}
        if self.position.kind == "learned":
            shapes["transformer.wpe.weight"] = (self.block_size, self.n_embd)
        for layer in range(self.n_layer):
            block, hidden = f"transformer.h.{layer}", self.experts * self.hidden_of(layer)
            shapes[f"{block}.attn.c_attn.weight"] = (sum(self.attention_maps(layer)), self.n_embd)
            if isinstance(self.attention, LatentAttention):
                shapes[f"{block}.attn.c_up.weight"] = (2 * self.n_head * self.head_width, self.latent_width)
            shapes[f"{block}.attn.c_proj.weight"] = (self.n_embd, self.n_head * self.head_width)
            if isinstance(self.mlp, ExpertsMLP):
                shapes[f"{block}.mlp.router.weight"] = (self.experts, self.n_embd)
            if self.one_mlp.kind == "swiglu":
                shapes[f"{block}.mlp.c_gate.weight"] = (hidden, self.n_embd)
            shapes[f"{block}.mlp.c_fc.weight"] = (hidden, self.n_embd)
            shapes[f"{block}.mlp.c_proj.weight"] = (self.n_embd, hidden)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (rows, self.n_embd)
        return shapes

    @property
    def head(self) -> str:
        """The weight from the last hidden state to the logits, which may be the embedding's."""
        return "transformer.wte.weight" if self.tie_embeddings else "lm_head.weight"

    def structure_of(self, name: str) -> WeightStructure:
        """What the weight of that name is made of; a tied head is made of what the embedding is."""
        found = chosen(self.structure, name)
        assert not isinstance(found, NarrowStructure)
        return found or DenseStructure()

    @property
    def own_head_width(self) -> int | None:
        """The width of a head, if it is given; else it follows from n_embd."""
        return self.attention.head_width if isinstance(self.attention, SoftmaxAttention) else None

    @property
    def head_width(self) -> int:
        """K: channels of one head."""
        return self.own_head_width or self.n_embd // self.n_head

    @property
    def n_kv_head(self) -> int:
        """G: key/value heads."""
        return (isinstance(self.attention, SoftmaxAttention) and self.attention.n_kv_head) or self.n_head

    def attention_maps(self, layer: int) -> tuple[int, ...]:
        """Outputs of the maps that the matrix ``c_attn`` of a layer holds: queries, and, where they are its own, keys
        and values; of latent attention queries with the channels that turn, the latent, and the key that turns."""
        query = self.n_head * self.head_width
        if isinstance(self.attention, LatentAttention):
            turning = self.rope_width
            return query + self.n_head * turning, self.latent_width, *((turning,) if turning else ())
        key = self.n_kv_head * self.head_width
        return (query, key, key) if self.kv_source(layer) == layer else (query,)

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values a layer reads."""
        share = self.attention.share_kv if isinstance(self.attention, SoftmaxAttention) else 1
        return layer - layer % share

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """The layers that have keys and values to keep; none where attention keeps a state instead."""
        if self.attention.kind == "linear":
            return ()
        return tuple(layer for layer in range(self.n_layer) if self.kv_source(layer) == layer)

    @property
    def kv_widths(self) -> tuple[int, int, int]:
        """What a layer keeps of a token: heads, channels of each key, channels of each value. Of latent attention the
        key that turns, and as the value the latent."""
        if isinstance(self.attention, LatentAttention):
            return 1, self.rope_width, self.latent_width
        return self.n_kv_head, self.head_width, self.head_width

    @property
    def latent_width(self) -> int:
        """C: channels of the latent, under latent attention."""
        assert isinstance(self.attention, LatentAttention)
        return self.attention.latent or 2 * self.head_width

    @property
    def rope_width(self) -> int:
        """Channels of a query or key that turn with its position; 0 without rope."""
        if self.position.kind != "rope":
            return 0
        if isinstance(self.attention, LatentAttention):
            return self.attention.rope_width or 2 * -(-self.head_width // 4)
        return self.head_width

    @property
    def one_mlp(self) -> GeluMLP | SwiGLUMLP | ReLU2MLP:
        """The MLP, or what each of the experts is."""
        return self.mlp.each if isinstance(self.mlp, ExpertsMLP) else self.mlp

    @property
    def experts(self) -> int:
        """E: MLPs of a layer, which is one where there is no choice."""
        return self.mlp.experts if isinstance(self.mlp, ExpertsMLP) else 1

    def hidden_of(self, layer: int) -> int:
        """F of one layer's MLP (of each expert), which ``model.structure`` may have made narrower."""
        found = chosen(self.structure, f"transformer.h.{layer}.mlp", narrow=True)
        return found.hidden if isinstance(found, NarrowStructure) else self.hidden

    @property
    def hidden(self) -> int:
        """F: hidden units of an MLP (of each expert) of which nothing else is said."""
        if self.one_mlp.hidden is not None:
            return self.one_mlp.hidden
        return -(-8 * self.n_embd // 3 // 16) * 16 if self.one_mlp.kind == "swiglu" else 4 * self.n_embd

    @property
    def width_ratio(self) -> float:
        """muP's width multiplier, n_embd / mup_base; 1 under the standard parametrisation."""
        return self.n_embd / (self.mup_base or self.n_embd)

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the embedding and of the head: the vocabulary and its padding."""
        return -(-self.vocabulary // self.vocab_multiple) * self.vocab_multiple

    @property
    def vocabulary(self) -> int:
        """V, once it is known: a model cannot be built before."""
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size is not set: give it, or train on data, whose tokenizer sets it")
        return self.vocab_size
