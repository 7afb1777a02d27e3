"""A model as a graph: the step of decoding for torch.export or ONNX, and the tokenizer beside it.

Nothing has to map onto a family of another program: the graph is our own computation, factors too where they are asked
for. What it cannot be are steps whose shape follows from the data, or that hand on something else than keys and values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Engine
from bonsaigpt.errors import CheckpointError, OutputError
from bonsaigpt.files import folder_aside, replace_folder
from bonsaigpt.interop.tokenizer_files import tokenizer_config, tokenizer_json
from bonsaigpt.interop.writing import write_texts
from bonsaigpt.structure import merge

__all__ = ["GRAPH_FILES", "GraphFormat", "graph_usage", "write_graph_folder"]

GraphFormat = Literal["torch", "onnx"]
GRAPH_FILES: dict[GraphFormat, str] = {"torch": "model.pt2", "onnx": "model.onnx"}
"""The file of the graph."""

_TORCH = """# in this folder
import torch
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
step = torch.export.load("model.pt2").module()
tokens = torch.tensor([tokenizer.encode("{prompt}").ids])
keys, values = torch.zeros({keys}), torch.zeros({values})
written = []
for _ in range({count}):
    logits, keys, values = step(tokens, keys, values)
    tokens = logits[:, -1:].argmax(-1)
    written.append(int(tokens))
print(tokenizer.decode(written))"""

_ONNX = """# in this folder
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx")
tokens = np.array([tokenizer.encode("{prompt}").ids])
keys, values = np.zeros({keys}, np.float32), np.zeros({values}, np.float32)
written = []
for _ in range({count}):
    logits, keys, values = session.run(None, {{"tokens": tokens, "keys": keys, "values": values}})
    tokens = logits[:, -1:].argmax(-1)
    written.append(int(tokens[0, 0]))
print(tokenizer.decode(written))"""


def graph_usage(config: ModelConfig, form: GraphFormat, *, prompt: str, count: int) -> str:
    """Python, to be run in the folder, that goes on with a prompt by the graph for as many tokens; none of it is
    ours."""
    heads, key, value = config.kv_widths
    keys, values = ((len(config.kv_layers), 1, heads, 0, width) for width in (key, value))
    return {"torch": _TORCH, "onnx": _ONNX}[form].format(prompt=prompt, count=count, keys=keys, values=values)


def write_graph_folder(
    folder: Path,
    engine: Engine,
    config: ModelConfig,
    values: Arrays,
    tokenizer: Tokenizer,
    *,
    origin: str,
    card: str,
    form: GraphFormat,
    factored: bool = False,
) -> None:
    """Write the graph, the tokenizer and README.md; whole or not at all.

    Args:
        engine: which traces the model.
        origin: what the model is called in messages.
        card: the text of README.md.
        factored: keep weights that are made of factors so; they are multiplied out otherwise.

    Raises:
        CheckpointError: the step is no graph of keys and values; the setting in the way is named.
        DeviceError: the engine or the packages that this needs are not here.
        OutputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"{folder} exists already: choose another place with --out, or remove it")
    if config.attention.kind == "linear":
        raise CheckpointError(
            f"{origin} cannot be a graph: it hands on keys and values, and model.attention.kind = 'linear' a state"
        )
    if config.experts > 1:
        raise CheckpointError(
            f"{origin} cannot be a graph: with model.mlp.kind = 'moe' the sizes of its products follow from the tokens"
        )
    if not factored:
        config, values = merge(config, values)
    files = {
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config(tokenizer, config.block_size),
    }
    with folder_aside(folder) as aside:
        write_texts(aside, files, card)
        engine.write_graph(config, values, aside / GRAPH_FILES[form], form)
        replace_folder(aside, folder)
