"""The one function that applies a weight, and normalisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bonsaigpt.config import ModelConfig
from bonsaigpt.jax_engine.structured import Factored, Weight, multiply

__all__ = ["apply", "dropout", "layer_norm", "linear", "norm", "rms_norm"]


def linear(x: Array, weight: Weight, bias: Array | None = None) -> Array:
    """``x @ weight.T + bias`` in the weight's number format; weights are (out, in), dense or made of factors."""
    x = x.astype(jax.tree.leaves(weight)[0].dtype)
    y = multiply(weight, x) if isinstance(weight, Factored) else _product(x, weight)
    return y if bias is None else y + bias.astype(y.dtype)


@jax.custom_vjp
def _product(x: Array, weight_OI: Array) -> Array:
    """``x @ weight.T``, whose weight's gradient is multiplied in the order that turns the narrower operand around.

    XLA on a CPU turns the left one, and does that together with all that made it, element by element: for the MLP's
    first matrix that is the derivative of the GELU. A step at the baby shape took a fifth longer.
    """
    return x @ weight_OI.T


def _product_forward(x: Array, weight_OI: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight_OI.T, (x, weight_OI)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight_OI = saved
    out, into = weight_OI.shape
    gradient_NO, x_NI = gradient.reshape(-1, out), x.reshape(-1, into)
    of_weight = (x_NI.T @ gradient_NO).T if out > into else gradient_NO.T @ x_NI
    return gradient @ weight_OI, of_weight


_product.defvjp(_product_forward, _product_backward)


def apply(params: dict[str, Any], x: Array) -> Array:
    """The linear map whose ``weight`` and perhaps ``bias`` these are."""
    return linear(x, params["weight"], params.get("bias"))


def norm(config: ModelConfig, params: dict[str, Array], x: Array) -> Array:
    """LayerNorm or RMSNorm, as the configuration says, in float32; ``params`` is empty where nothing is learned."""
    normalise = rms_norm if config.norm.kind == "rmsnorm" else layer_norm
    return normalise(x, params.get("weight"), params.get("bias"), eps=config.norm.eps)


def rms_norm(x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, times ``weight`` (Zhang and Sennrich 2019, equation 4)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return _scale(y, weight, bias)


def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) over the last axis (Ba et al. 2016, equation 4)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return _scale(y, weight, bias)


def _scale(y: Array, weight: Array | None, bias: Array | None) -> Array:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each element with probability ``rate`` and scale the rest; nothing at all without a key."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros((), x.dtype))
