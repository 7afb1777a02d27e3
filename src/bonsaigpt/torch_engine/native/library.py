"""The C interface of decode.cpp and codes.h as ctypes sees it."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, c_float, c_int32, c_int64, c_void_p

from bonsaigpt.torch_engine.native.building import load_library

__all__ = ["ATTEND", "MLPS", "REFUSALS", "ROPES", "Buffers", "Codes", "Layer", "Matrix", "Model", "library"]

MLPS = {"gelu": 0, "gelu tanh": 1, "swiglu": 2, "relu2": 3}
ROPES = {"none": 0, "halves": 1, "neighbours": 2}
REFUSALS = {1: "row", 2: "token", 3: "full"}
"""What ``bonsai_step`` returns instead of 0, and then nothing has changed."""
ATTEND = CFUNCTYPE(None, c_int64)
"""Asked for the attention of a layer, if the cache is not the C++'s own."""


class Matrix(ctypes.Structure):
    """A matrix in panels of 16 outputs."""

    _fields_ = [
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
    ]


class Layer(ctypes.Structure):
    """One block."""

    _fields_ = [
        *((name, Matrix) for name in ("c_attn", "attn_proj", "c_gate", "c_fc", "mlp_proj")),
        *((name, c_void_p) for name in ("ln_1", "ln_1_bias", "ln_2", "ln_2_bias")),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "sinks")),
        ("window", c_int64),
    ]


class Model(ctypes.Structure):
    """The model with its cache."""

    _fields_ = [
        *((n, c_int64) for n in ("layers", "width", "heads", "kv_heads", "head_width", "hidden", "vocabulary")),
        *((name, c_int64) for name in ("rows", "slots")),
        *((name, c_int32) for name in ("rms_norm", "post_norm", "mlp", "rope", "qk_norm")),
        *((name, c_float) for name in ("eps", "softcap", "head_scale")),
        *((name, c_void_p) for name in ("wte", "wpe", "cos", "sin", "ln_f", "ln_f_bias", "layer")),
        ("head", Matrix),
        *((name, c_void_p) for name in ("keys", "values", "lengths")),
        ("attend", c_void_p),
    ]


class Buffers(ctypes.Structure):
    """What an attention that is asked for is made of, and where its result goes; strides in numbers."""

    _fields_ = [
        *((name, c_void_p) for name in ("input", "qkv", "mixed")),
        *((name, c_int64) for name in ("input_stride", "qkv_stride", "mixed_stride")),
    ]


class Codes(ctypes.Structure):
    """A row of numbers in groups, and of their codes."""

    _fields_ = [
        *((name, c_int64) for name in ("width", "group", "row_bytes")),
        *((name, c_int32) for name in ("bits", "is_symmetric")),
    ]


def library() -> ctypes.CDLL:
    """The library with the types of its functions.

    Raises:
        Missing: it cannot be built here.
    """
    found = load_library()
    found.bonsai_most_tokens.argtypes, found.bonsai_most_tokens.restype = [], c_int64
    found.bonsai_open.argtypes, found.bonsai_open.restype = [c_void_p, c_int32], c_void_p
    found.bonsai_close.argtypes, found.bonsai_close.restype = [c_void_p], None
    found.bonsai_threads.argtypes, found.bonsai_threads.restype = [c_void_p], c_int32
    found.bonsai_buffers.argtypes, found.bonsai_buffers.restype = [c_void_p, c_void_p], None
    found.bonsai_step.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p]
    found.bonsai_step.restype = c_int32
    for coding in (found.bonsai_encode, found.bonsai_decode):
        coding.argtypes, coding.restype = [c_void_p, c_int64, *[c_void_p] * 4], None
    return found
