"""Rows of text that grow at their own pace: the model as it is, over one cache a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bonsaigpt.torch_engine.model import GPT

if TYPE_CHECKING:
    from bonsaigpt.torch_engine.engine import TorchEngine

__all__ = ["EagerDecoder"]


class EagerDecoder:
    """One pass of the model for each row and call; see ``bonsaigpt.engines.Decoder``."""

    why = "eager: row by row"

    def __init__(self, engine: TorchEngine, model: GPT, *, rows: int) -> None:
        self.rows, self.block_size = rows, model.config.block_size
        self._placement, self._model = engine.placement, model.eval()
        self._caches = [engine.cache(model, batch=1) for _ in range(rows)]

    def prefill(self, row: int, tokens: np.ndarray) -> np.ndarray:
        return self._read(row, tokens, last=True)[0]

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [self._read(row, token, last=True) for row, token in zip(rows.tolist(), tokens[:, None], strict=True)]
        )

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        return self._read(row, tokens, last=False)

    def truncate(self, row: int, length: int) -> None:
        self._caches[row].truncate(length)

    def copy_row(self, source: int, target: int) -> None:
        self._caches[target].copy_from(self._caches[source])

    def length(self, row: int) -> int:
        return self._caches[row].length

    @torch.inference_mode()
    def _read(self, row: int, tokens: np.ndarray, *, last: bool) -> np.ndarray:
        device = self._placement.device
        tokens_1T = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(device)[None]
        with self._placement.autocast():
            hidden_1TD = self._model.hidden(tokens_1T, cache=self._caches[row])
            logits_TV = self._model.logits(hidden_1TD[0, -1:] if last else hidden_1TD[0])
        return logits_TV.float().cpu().numpy()
