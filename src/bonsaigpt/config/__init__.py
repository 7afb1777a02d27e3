"""Every knob, typed, frozen and documented; the docstrings below the fields are the help of the command line.

A variant is a member of a tagged union with its own fields (``mlp = {kind = "swiglu", hidden = 512}``), never a
boolean that multiplies with others. Nothing changes a config after it was made: ``derive`` makes another one.
"""

from bonsaigpt.config.base import Config
from bonsaigpt.config.corpora import (
    CorpusData,
    FilesData,
    ReadingData,
    ShakespeareData,
    StdlibData,
    TextData,
    TokenData,
)
from bonsaigpt.config.data import DataConfig
from bonsaigpt.config.mixture import MixtureData, MixturePart
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
from bonsaigpt.config.tokenizers import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    Gpt2TokenizerConfig,
    TokenizerConfig,
)
from bonsaigpt.config.toys import AddData, CopyData, RecallData, SortData, TaskData, ZeroOneData

__all__ = [
    "PRESETS",
    "AdamWMatrices",
    "AddData",
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "CharTokenizerConfig",
    "Config",
    "ConstantSchedule",
    "CopyData",
    "CorpusData",
    "CosineSchedule",
    "DataConfig",
    "FilesData",
    "GeluMLP",
    "Gpt2TokenizerConfig",
    "GuardConfig",
    "LayerNorm",
    "LearnedPosition",
    "LinearRamp",
    "LinearSchedule",
    "MixtureData",
    "MixturePart",
    "ModelConfig",
    "MuonMatrices",
    "NoPosition",
    "NoRamp",
    "OptimConfig",
    "RMSNorm",
    "Ramp",
    "ReLU2MLP",
    "ReadingData",
    "RecallData",
    "RopePosition",
    "RunConfig",
    "Schedule",
    "ShakespeareData",
    "SoftmaxAttention",
    "SortData",
    "StagedRamp",
    "StdlibData",
    "SwiGLUMLP",
    "TaskData",
    "TextData",
    "TokenData",
    "TokenizerConfig",
    "TrainConfig",
    "WSDSchedule",
    "ZeroOneData",
    "derive",
    "dump_toml",
    "load_toml",
    "setting_names",
    "validate",
]
