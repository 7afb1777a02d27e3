"""Every knob, typed, frozen and documented; the docstrings below the fields are the help of the command line.

A variant is a member of a tagged union with its own fields (``mlp = {kind = "swiglu", hidden = 512}``), never a
boolean that multiplies with others. Nothing changes a config after it was made: ``derive`` makes another one.
"""

from bonsaigpt.config.base import Config
from bonsaigpt.config.data import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    DataConfig,
    FilesData,
    Gpt2TokenizerConfig,
    ShakespeareData,
    SortData,
    StdlibData,
    TextData,
    TokenData,
    TokenizerConfig,
    ZeroOneData,
)
from bonsaigpt.config.model import (
    PRESETS,
    GeluMLP,
    LayerNorm,
    LearnedPosition,
    ModelConfig,
    NoPosition,
    ReLU2MLP,
    RMSNorm,
    RopePosition,
    SoftmaxAttention,
    SwiGLUMLP,
)
from bonsaigpt.config.reading import derive, dump_toml, load_toml, setting_names, validate
from bonsaigpt.config.run import ConstantSchedule, CosineSchedule, OptimConfig, RunConfig, TrainConfig

__all__ = [
    "PRESETS",
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "CharTokenizerConfig",
    "Config",
    "ConstantSchedule",
    "CosineSchedule",
    "DataConfig",
    "FilesData",
    "GeluMLP",
    "Gpt2TokenizerConfig",
    "LayerNorm",
    "LearnedPosition",
    "ModelConfig",
    "NoPosition",
    "OptimConfig",
    "RMSNorm",
    "ReLU2MLP",
    "RopePosition",
    "RunConfig",
    "ShakespeareData",
    "SoftmaxAttention",
    "SortData",
    "StdlibData",
    "SwiGLUMLP",
    "TextData",
    "TokenData",
    "TokenizerConfig",
    "TrainConfig",
    "ZeroOneData",
    "derive",
    "dump_toml",
    "load_toml",
    "setting_names",
    "validate",
]
