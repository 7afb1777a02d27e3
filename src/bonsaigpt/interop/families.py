"""The families that models come in and leave in.

A family's settings and ours are two spellings of the same thing. So nothing lists what cannot be written: what does not
come back when it is read again is refused by its name, and a setting of theirs that ours do not have is refused where
it is read.
"""

from __future__ import annotations

from pydantic import ValidationError

from bonsaigpt.config import GeluMLP, ModelConfig, SoftmaxAttention, SwiGLUMLP
from bonsaigpt.interop.family import Family, Settings, Unmapped
from bonsaigpt.interop.gpt2 import GPT2
from bonsaigpt.interop.llama import LLAMAS
from bonsaigpt.recipes import flatten

__all__ = ["FAMILIES", "differences"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, *LLAMAS)}
"""By ``model_type``, in the order in which one is looked for to write to. SmolLM says ``llama``."""


def differences(family: Family, config: ModelConfig) -> list[str]:
    """The settings of the model that the family cannot say."""
    if config.attention.kind != "softmax":
        return ["model.attention.kind"]
    try:
        back = ModelConfig.model_validate(family.read(family.write(config)))
    except Unmapped:  # of the MLP, the only word that a family may not even be able to write
        known = SwiGLUMLP if "mlp.c_gate" in family.modules else GeluMLP
        rest = config.model_copy(update={"mlp": known(hidden=config.hidden)})
        return ["model.mlp.kind", *differences(family, rest)]
    except ValidationError:  # heads whose width is lost, the only setting without which others are wrong
        rest = config.model_copy(update={"n_embd": config.n_head * config.head_width})
        return ["model.attention.head_width", *differences(family, rest)]
    ours, theirs = (flatten(_canonical(c)) for c in (config, back))
    return [f"model.{name}" for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]


def _canonical(config: ModelConfig) -> Settings:
    """Settings of the function that a model computes; equal for all spellings of one."""
    settings = config.model_dump(mode="json", exclude={"preset", "dropout", "residual_init", "vocab_multiple"})
    settings["mlp"]["hidden"] = config.hidden
    attention = config.attention
    if isinstance(attention, SoftmaxAttention):
        windows = [attention.window_of(layer) for layer in range(config.n_layer)]
        pattern = "".join("S" if window else "L" for window in windows) if any(windows) else ""
        window = attention.window if pattern else None
        heads = {"n_kv_head": config.n_kv_head, "head_width": config.head_width}
        settings["attention"] |= heads | {"window": window, "pattern": pattern}
    return settings
