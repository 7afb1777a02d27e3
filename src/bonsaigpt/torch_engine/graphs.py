"""The step of decoding as one graph that runs without any code of ours: torch.export's program, or ONNX.

The same graph reads a prompt and each token after it. It remembers nothing: keys and values go in, empty at first, and
come back longer. Batch, tokens and past are free.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bonsaigpt.errors import DeviceError
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.structured import FactoredWeight

__all__ = ["GraphFormat", "write_graph"]

GraphFormat = Literal["torch", "onnx"]
_BATCH, _TOKENS, _PAST = Dim("batch"), Dim("tokens"), Dim("past", min=0)
_INPUTS = {"tokens": {0: _BATCH, 1: _TOKENS}, "keys": {1: _BATCH, 3: _PAST}, "values": {1: _BATCH, 3: _PAST}}
"""What is free of each input."""
_OUTPUTS = ["logits", "new_keys", "new_values"]


def write_graph(model: GPT, path: Path, form: GraphFormat) -> None:
    """Write the step: tokens (B, T) int64, keys (L, B, G, S, K), values (L, B, G, S, K) to logits (B, T, V) and the
    keys and values of S + T tokens. L are the layers of ``config.kv_layers``, G and both K ``config.kv_widths``.

    Raises:
        DeviceError: the packages that write ONNX are not installed.
    """
    if form == "onnx":
        _need_onnx()
    program = _program(model)
    if form == "torch":
        torch.export.save(program, path)
        return
    with _hushed():
        written = torch.onnx.export(
            program,
            input_names=list(_INPUTS),
            output_names=_OUTPUTS,
            dynamic_shapes=_INPUTS,
            dynamo=True,
            verbose=False,
        )
    assert written is not None
    written.save(path)


def _program(model: GPT) -> ExportedProgram:
    heads, key, value = model.config.kv_widths
    layers = len(model.config.kv_layers)
    for module in model.modules():
        if isinstance(module, FactoredWeight):  # or it would count the tokens at hand to choose an order
            module.order = module.structure.cheapest
    # Sizes of the example are no part of the graph; those of 0 and 1 would be.
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    past = torch.zeros(layers, 2, heads, 4, key), torch.zeros(layers, 2, heads, 4, value)
    return torch.export.export(_Step(model).eval(), (tokens, *past), dynamic_shapes=_INPUTS)


class _Step(nn.Module):
    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cache = _Given(keys, values)
        logits_BTV = self.model(tokens, cache=cache)
        return logits_BTV, torch.stack(cache.new_keys), torch.stack(cache.new_values)


class _Given:
    """The keys and values that came in, and those that go out; to the model a ``KVCache``."""

    def __init__(self, keys_LBGSK: Tensor, values_LBGSK: Tensor) -> None:
        self._keys, self._values = keys_LBGSK, values_LBGSK
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    @property
    def length(self) -> int:
        return self._keys.shape[3]

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place = len(self.new_keys)  # layers come in the order of ``kv_layers``
        self.new_keys.append(torch.cat((self._keys[place], k_BGTK), dim=2))
        self.new_values.append(torch.cat((self._values[place], v_BGTK), dim=2))
        batch, _, length, _ = self.new_keys[-1].shape
        return self.new_keys[-1], self.new_values[-1], torch.arange(length).expand(batch, -1)

    def recall(self, layer: int) -> Tensor:
        raise AssertionError("a state is not among the inputs: linear attention is refused")

    def remember(self, layer: int, state_BHKW: Tensor, tokens: int) -> None:
        raise AssertionError("a state is not among the outputs: linear attention is refused")

    def bits(self) -> int:
        return sum(8 * t.element_size() * t.numel() for t in (self._keys, self._values))


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise DeviceError("ONNX files need the packages onnx and onnxscript: pip install 'bonsaigpt[onnx]'") from None


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what the exporter says to itself: of torchvision, of names that torch renamed, of axes that two inputs
    share."""
    speaker = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        speaker.setLevel(level)
