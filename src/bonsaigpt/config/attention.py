"""What an attention may be: softmax with windows, shared keys and sinks; a latent cache; linear."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config

__all__ = ["AttentionConfig", "LatentAttention", "LinearAttention", "SoftmaxAttention"]


class SoftmaxAttention(Config):
    """Causal multi-head attention (Vaswani et al. 2017), with grouped queries (Ainslie et al. 2023) if asked."""

    kind: Literal["softmax"] = "softmax"
    """Which attention."""
    n_kv_head: int | None = Field(default=None, ge=1)
    """Key/value heads, shared by groups of query heads; none means n_head (1 is multi-query attention)."""
    head_width: int | None = Field(default=None, ge=1)
    """Channels of a head; none means n_embd / n_head (Qwen3 has more)."""
    qkv_bias: bool = False
    """Biases of queries, keys and values even where model.bias is false (Qwen2)."""
    qk_norm: bool | Literal["scaled"] = False
    """RMS-normalise each query and key head before the positions are applied (Dehghani et al. 2023); scaled: with a
    learned factor for each channel (Qwen3)."""
    window: int | None = Field(default=None, ge=1)
    """Tokens that a query sees in layers with a short window, itself included; none means all before it."""
    pattern: str = Field(default="S", pattern="^[SL]+$")
    """Which layers have the short window (S) and which see all (L), repeated to the last layer: SSSL, say."""
    share_kv: int = Field(default=1, ge=1)
    """Neighbouring layers that read the keys and values of the first of them (Brandon et al. 2024); 1: each its own."""
    sinks: bool = False
    """A learned score for each query head that takes part in the softmax and has no value, so that a head may look at
    nothing (OpenAI 2025, gpt-oss)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window is None and "L" in self.pattern:
            raise ValueError(
                f"model.attention.pattern = '{self.pattern}' says which layers have the short window, but there is "
                "none: give model.attention.window, in tokens"
            )
        return self

    def window_of(self, layer: int) -> int | None:
        """Tokens that a query of that layer sees, itself included; None: all before it."""
        return self.window if self.pattern[layer % len(self.pattern)] == "S" else None


class LatentAttention(Config):
    """Multi-head latent attention (DeepSeek-AI 2024, V2, section 2.1): keys and values of all heads are made from one
    short vector for each token, and only that is kept."""

    kind: Literal["latent"] = "latent"
    """Which attention."""
    latent: int | None = Field(default=None, ge=1)
    """Channels of the vector that is kept; none means those of two heads."""
    rope_width: int | None = Field(default=None, ge=2)
    """Channels of the one key that carries the position, shared by all heads, under model.position.kind = rope; none
    means half a head, up to an even number."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rope_width is not None and self.rope_width % 2:
            raise ValueError(
                f"rope turns pairs of channels, but model.attention.rope_width = {self.rope_width}: use "
                f"{self.rope_width + 1}"
            )
        return self


class LinearAttention(Config):
    """Attention without a softmax, whose past is a state of fixed size (Katharopoulos et al. 2020)."""

    kind: Literal["linear"] = "linear"
    """Which attention."""
    form: Literal["elu", "layernorm"] = "elu"
    """elu: queries and keys through elu(x) + 1, divided by the sum of the weights (equations 5 and 7). layernorm:
    queries and keys as they are, and the result of each head layer-normalised instead."""


AttentionConfig = Annotated[SoftmaxAttention | LatentAttention | LinearAttention, Field(discriminator="kind")]
