"""Every knob, typed, frozen and documented; the docstrings below the fields are the help of the command line.

A variant is a member of a tagged union with its own fields (``mlp = {kind = "swiglu", hidden = 512}``), never a
boolean that multiplies with others. Nothing changes a config after it was made: ``derive`` makes another one.
"""

from bonsaigpt.config.base import Config
from bonsaigpt.config.corpora import FilesData, ShakespeareData, StdlibData, TextData, TokenData
from bonsaigpt.config.data import DataConfig
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
from bonsaigpt.config.optim import (
    AdamWMatrices,
    ConstantSchedule,
    CosineSchedule,
    LinearRamp,
    LinearSchedule,
    MuonMatrices,
    NoRamp,
    OptimConfig,
    Ramp,
    Schedule,
    StagedRamp,
    WSDSchedule,
)
from bonsaigpt.config.reading import derive, dump_toml, load_toml, setting_names, validate
from bonsaigpt.config.run import GuardConfig, RunConfig, TrainConfig
from bonsaigpt.config.structure import (
    DenseStructure,
    KroneckerColumnsStructure,
    KroneckerStructure,
    LowRankStructure,
    MonarchStructure,
    NarrowStructure,
    StructureConfig,
    WeightStructure,
)
from bonsaigpt.config.tokenizers import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    Gpt2TokenizerConfig,
    TokenizerConfig,
)
from bonsaigpt.config.toys import SortData, ZeroOneData

__all__ = [
    "PRESETS",
    "AdamWMatrices",
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "CharTokenizerConfig",
    "Config",
    "ConstantSchedule",
    "CosineSchedule",
    "DataConfig",
    "DenseStructure",
    "FilesData",
    "GeluMLP",
    "Gpt2TokenizerConfig",
    "GuardConfig",
    "KroneckerColumnsStructure",
    "KroneckerStructure",
    "LayerNorm",
    "LearnedPosition",
    "LinearRamp",
    "LinearSchedule",
    "LowRankStructure",
    "ModelConfig",
    "MonarchStructure",
    "MuonMatrices",
    "NarrowStructure",
    "NoPosition",
    "NoRamp",
    "OptimConfig",
    "RMSNorm",
    "Ramp",
    "ReLU2MLP",
    "RopePosition",
    "RunConfig",
    "Schedule",
    "ShakespeareData",
    "SoftmaxAttention",
    "SortData",
    "StagedRamp",
    "StdlibData",
    "StructureConfig",
    "SwiGLUMLP",
    "TextData",
    "TokenData",
    "TokenizerConfig",
    "TrainConfig",
    "WSDSchedule",
    "WeightStructure",
    "ZeroOneData",
    "derive",
    "dump_toml",
    "load_toml",
    "setting_names",
    "validate",
]
