"""Decoding by the model's own code: every device and number format, and whatever a weight may be made of.

Buffers are of fixed size; the slot of a token is its position. On a CPU rows are computed one after the other, so that
the bits of a row do not depend on its neighbours. On a GPU a step always computes all rows, those that nobody asked for
into a slot that nobody sees, so that its shapes never change and one CUDA graph replays it: its hundreds of kernels of
some microseconds would otherwise wait for Python. Not measured on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bonsaigpt.errors import GenerateError
from bonsaigpt.kv import state_shape
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.rounding import Weights, rounded, with_matrices

__all__ = ["EagerDecoder", "Slots", "bytes_of_a_step", "check_different", "check_row", "check_tokens", "ready"]

_CHUNK = 512
"""Tokens of a text that are read in one pass: more would hold more activations and be no faster."""
_SMALLEST_WINDOW = 128


class Slots:
    """The keys and values of all rows, and where those of the present pass belong; a ``KVCache`` for the model."""

    def __init__(self, model: GPT, *, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        config = model.config
        heads, key, value = config.kv_widths
        self._place = {layer: number for number, layer in enumerate(config.kv_layers)}
        room = (len(self._place), rows, heads, config.block_size + 1)
        # Zeros: what is masked is still multiplied, by 0, and whatever memory holds might be no number.
        self._k = torch.zeros((*room, key), device=device, dtype=dtype)
        self._v = torch.zeros((*room, value), device=device, dtype=dtype)
        self.states = torch.zeros((config.n_layer, rows, *state_shape(config)), device=device)
        """Of linear attention, for each layer and row; sums of many terms, so always float32."""
        self._numbers = torch.arange(config.block_size + 1, device=device)
        self._index_B1 = torch.arange(rows, device=device)[:, None]
        self.waste = config.block_size
        """A slot that no query may see."""
        self.rows = slice(0, rows)
        self.slots_BT = self._index_B1
        self.window = config.block_size

    def aim(self, rows: slice, slots_BT: Tensor, window: int) -> None:
        """The next pass computes these rows, writes into these slots and looks at the first ``window``."""
        self.rows, self.slots_BT, self.window = rows, slots_BT, window

    @property
    def length(self) -> int:
        raise AssertionError("rows have lengths of their own: give positions")

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place = self._place[layer]
        k_BGSK, v_BGSK = self._k[place, self.rows], self._v[place, self.rows]  # views
        index_B1 = self._index_B1[: len(k_BGSK)]
        k_BGSK[index_B1, :, self.slots_BT] = k_BGTK.transpose(1, 2).to(k_BGSK.dtype)
        v_BGSK[index_B1, :, self.slots_BT] = v_BGTK.transpose(1, 2).to(v_BGSK.dtype)
        seen_BS = self._numbers[: self.window].expand(len(k_BGSK), -1)
        return k_BGSK[:, :, : self.window], v_BGSK[:, :, : self.window], seen_BS

    def recall(self, layer: int) -> Tensor:
        return self.states[layer, self.rows]

    def remember(self, layer: int, state_BHKW: Tensor, tokens: int) -> None:
        held_BHKW = self.states[layer, self.rows]
        asked_B = self.slots_BT[:, 0] != self.waste
        held_BHKW.copy_(torch.where(asked_B[:, None, None, None], state_BHKW, held_BHKW))

    def copy_row(self, source: int, target: int) -> None:
        for buffer in (self._k, self._v, self.states):
            buffer[:, target] = buffer[:, source]

    def bits(self) -> int:
        return sum(8 * t.element_size() * t.numel() for t in (self._k, self._v, self.states))


@torch.no_grad()
def ready(model: GPT, placement: Placement, weights: Weights) -> GPT:
    """The model with its matrices as decoding here reads them."""
    if weights == "int8":
        model = rounded(model)
    if placement.dtype != torch.float32:  # or autocast would read the wide weights again for every token
        model = with_matrices(model, lambda weight: weight.to(placement.dtype))
    return model.eval()


def bytes_of_a_step(model: GPT) -> int:
    """What a step reads of the weights."""
    return sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters()
        if p.ndim > 1 and (model.config.tie_embeddings or "wte" not in name) and "wpe" not in name
    )


def check_tokens(tokens: np.ndarray, vocabulary: int) -> None:
    """Raise ``GenerateError`` if a token is none."""
    if any(not 0 <= token < vocabulary for token in np.asarray(tokens).tolist()):
        raise GenerateError(f"a token of {list(tokens)} is outside the vocabulary of {vocabulary}")


def check_row(row: int, rows: int) -> None:
    """Raise ``GenerateError`` if there is no such row."""
    if not 0 <= row < rows:
        raise GenerateError(f"there is no such row as {row}: use 0 to {rows - 1}")


def check_different(rows: list[int], tokens: np.ndarray) -> None:
    """Raise ``GenerateError`` if a step is not one token for each of some different rows."""
    if len(rows) != len(tokens) or len(set(rows)) != len(rows):
        raise GenerateError(f"rows {rows} with {len(tokens)} tokens cannot be: one token for each of some rows")


class EagerDecoder:
    """See ``bonsaigpt.engines.Decoder``.

    Args:
        weights: ``int8`` takes matrices as int8 would keep them; it is no faster here.
        why: in words, why it is this one.
        batched: compute all rows in a step at once; as suits the device, if not said.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: GPT,
        *,
        rows: int,
        placement: Placement,
        weights: Weights = "fp32",
        why: str = "as asked",
        batched: bool | None = None,
    ) -> None:
        device, dtype = placement.device, placement.dtype
        self._model, self._placement = ready(model, placement, weights), placement
        self.rows, self.block_size, self.vocabulary = rows, model.config.block_size, model.config.vocabulary
        self._lengths = [0] * rows
        self._slots = Slots(model, rows=rows, device=device, dtype=dtype)
        self._past = _Past(rows, self._slots) if model.config.attention.kind == "linear" else None
        batched = device.type != "cpu" if batched is None else batched
        self._together = _Together(self) if batched else None
        format = str(dtype).removeprefix("torch.")
        how = "the model's own code" + (", as CUDA graphs (not measured)" if device.type == "cuda" else "")
        rounding = ", int8's rounding without its speed" if weights == "int8" else ""
        self.why = f"eager: {how} on {device}, {format}{rounding}; {why}"
        self.weight_bytes = bytes_of_a_step(self._model)

    def length(self, row: int) -> int:
        return self._lengths[row]

    def prefill(self, row: int, tokens: np.ndarray) -> np.ndarray:
        return self._append(row, tokens, every=False)[-1]

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        return self._append(row, tokens, every=True)

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        asked = np.asarray(rows).tolist()
        check_different(asked, tokens)
        self._check(asked, tokens, 1)
        if self._together is not None:
            logits = self._together.step(asked, tokens)
        else:
            logits = np.concatenate([self._read(r, tokens[i : i + 1], every=False) for i, r in enumerate(asked)])
        for row, token in zip(asked, tokens, strict=True):
            self._lengths[row] += 1
            if self._past is not None:
                self._past.tokens[row].append(int(token))
        return logits

    def truncate(self, row: int, length: int) -> None:
        check_row(row, self.rows)
        if not 0 <= length <= self._lengths[row]:
            raise GenerateError(f"row {row} holds {self._lengths[row]} tokens: it cannot be cut to {length}")
        if self._past is not None and length < self._lengths[row]:
            tokens = self._past.tokens[row][:length]
            self._lengths[row] = self._past.go_back(row, length)
            if len(tokens) > self._lengths[row]:
                self._append(row, np.array(tokens[self._lengths[row] :]), every=False)
        self._lengths[row] = length

    def reach(self, row: int, length: int) -> int:
        return length

    def copy_row(self, source: int, target: int) -> None:
        self._slots.copy_row(source, target)
        self._lengths[target] = self._lengths[source]
        if self._past is not None:
            self._past.copy_row(source, target)

    def bits(self) -> int:
        """Of the cache, all rows."""
        return self._slots.bits()

    def _append(self, row: int, tokens: np.ndarray, *, every: bool) -> np.ndarray:
        if len(tokens) < 1:
            raise GenerateError("no tokens were given: a row goes on with one at least")
        self._check([row], tokens, len(tokens))
        logits: list[np.ndarray] = []
        if self._past is not None:
            self._past.note(row, tokens)
        for start in range(0, len(tokens), _CHUNK):
            part = tokens[start : start + _CHUNK]
            logits.append(self._read(row, part, every=every))
            self._lengths[row] += len(part)
        return np.concatenate(logits)

    @torch.inference_mode()
    def _read(self, row: int, tokens: np.ndarray, *, every: bool) -> np.ndarray:
        """Logits (T, V) after each token, or (1, V) after the last; the length stays."""
        device, start = self._placement.device, self._lengths[row]
        positions_1T = torch.arange(start, start + len(tokens), device=device)[None]
        self._slots.aim(slice(row, row + 1), positions_1T, start + len(tokens))
        tokens_1T = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))[None].to(device)
        with self._placement.autocast():
            hidden_1TD = self._model.hidden(tokens_1T, positions_BT=positions_1T, cache=self._slots)
            logits_1TV = self._model.logits(hidden_1TD if every else hidden_1TD[:, -1:])
        return logits_1TV[0].float().cpu().numpy()

    def _check(self, rows: list[int], tokens: np.ndarray, count: int) -> None:
        check_tokens(tokens, self._model.config.vocabulary)
        for row in rows:
            check_row(row, self.rows)
            if self._lengths[row] + count > self.block_size:
                raise GenerateError(
                    f"row {row} has {self.block_size} slots, {self._lengths[row] + count} are needed: shorten the text "
                    "or slide"
                )


class _Past:
    """How rows with a state go back, which a sum cannot: to the state before the last text was appended, or to none,
    and from there the tokens are read again. The draft of a speculation, say, is such a text."""

    def __init__(self, rows: int, slots: Slots) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self._slots = slots
        self._marks: list[tuple[int, Tensor]] = [(0, torch.zeros_like(slots.states[:, 0])) for _ in range(rows)]

    def note(self, row: int, tokens: np.ndarray) -> None:
        """This text is about to be appended."""
        self._marks[row] = len(self.tokens[row]), self._slots.states[:, row].clone()
        self.tokens[row] += tokens.tolist()

    def go_back(self, row: int, length: int) -> int:
        """Put back a state of at most so many tokens; of how many it is."""
        marked, state = self._marks[row]
        if marked > length:
            marked, state = 0, torch.zeros_like(state)
        self._slots.states[:, row] = state
        del self.tokens[row][marked:]
        return marked

    def copy_row(self, source: int, target: int) -> None:
        self.tokens[target], self._marks[target] = list(self.tokens[source]), self._marks[source]


class _Together:
    """A step of all rows in fixed shapes, replayed as a CUDA graph where there is CUDA."""

    def __init__(self, decoder: EagerDecoder) -> None:
        self._decoder = decoder
        rows, device = decoder.rows, decoder._placement.device
        self._inputs_3B1 = torch.zeros(3, rows, 1, dtype=torch.int64, device=device)
        self._graphs: dict[int, tuple[Any, Tensor]] = {}

    def step(self, rows: list[int], tokens: np.ndarray) -> np.ndarray:
        """Logits of these rows, in their order."""
        decoder, slots = self._decoder, self._decoder._slots
        inputs_3B1 = np.zeros((3, decoder.rows, 1), dtype=np.int64)  # tokens, positions, slots
        inputs_3B1[2] = slots.waste
        lengths = [decoder._lengths[row] for row in rows]
        inputs_3B1[0, rows, 0], inputs_3B1[1, rows, 0], inputs_3B1[2, rows, 0] = tokens, lengths, lengths
        self._inputs_3B1.copy_(torch.from_numpy(inputs_3B1))
        window = _SMALLEST_WINDOW  # of few sizes: each has a graph
        while window <= max(lengths):
            window *= 2
        return self._run(min(window, decoder.block_size)).cpu().numpy()[rows]

    @torch.inference_mode()
    def _run(self, window: int) -> Tensor:
        if self._decoder._placement.device.type != "cuda":
            return self._compute(window)
        if window not in self._graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(
                side
            ):  # libraries make their workspaces before the capture; the same is written twice
                self._compute(window)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = self._compute(window)
            self._graphs[window] = graph, logits
        graph, logits = self._graphs[window]
        graph.replay()
        return logits

    def _compute(self, window: int) -> Tensor:
        decoder = self._decoder
        tokens_B1, positions_B1, slots_B1 = self._inputs_3B1
        decoder._slots.aim(slice(0, decoder.rows), slots_B1, window)
        with decoder._placement.autocast():
            hidden_B1D = decoder._model.hidden(tokens_B1, positions_BT=positions_B1, cache=decoder._slots)
            return decoder._model.logits(hidden_B1D)[:, 0].float()
