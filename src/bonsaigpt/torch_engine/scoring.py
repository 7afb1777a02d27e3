"""What a model says of every single target of a batch, and of given continuations of prompts.

A prompt is read once, whatever the choices are: the logits after it say how likely each choice begins; where choices
have more tokens, every row's cache is repeated once for each of them, and all go on side by side. Prompts of one length
are read as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.target_scores import TargetScores
from bonsaigpt.torch_engine.cache import FullCache
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.step import to_device

__all__ = ["choice_scores", "target_scores"]

_LOGITS = 2**23
"""Logits that are held at once."""
_ROWS = 256
"""Prompts that are read at once."""


@torch.inference_mode()
def target_scores(model: GPT, batch: Batch, placement: Placement) -> TargetScores:
    """Of every target that counts, row by row."""
    model.eval()
    tokens_BT, targets_BT, documents_BT = to_device(batch, placement.device)
    rows = max(1, _LOGITS // (tokens_BT.shape[1] * model.config.vocabulary))
    found: list[list[np.ndarray]] = []
    for first in range(0, len(tokens_BT), rows):
        part = slice(first, first + rows)
        with placement.autocast():
            documents = None if documents_BT is None else documents_BT[part]
            logits_BTV = model(tokens_BT[part], documents_BT=documents)
        asked_BT = targets_BT[part] != IGNORE
        targets_N = targets_BT[part][asked_BT]
        logs_NV = logits_BTV[asked_BT].float().log_softmax(dim=-1)
        best_N = logs_NV.max(dim=-1)
        losses_N = -logs_NV.gather(1, targets_N[:, None])[:, 0]
        found.append([t.cpu().numpy() for t in (losses_N, best_N.values.exp(), best_N.indices == targets_N)])
    row_N, place_N = np.nonzero(batch.targets_BT != IGNORE)
    losses_N, confidence_N, right_N = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return TargetScores(
        losses_N=losses_N.astype(np.float64),
        confidence_N=confidence_N.astype(np.float64),
        right_N=right_N,
        rows_N=row_N,
        places_N=place_N,
    )


@torch.inference_mode()
def choice_scores(
    model: GPT,
    prompts: Sequence[np.ndarray],
    choices: Sequence[np.ndarray],
    placement: Placement,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Log-probability of each choice after each prompt in nats, summed over its tokens, (N, C) float64.

    Args:
        prompts: token ids; with the longest choice they fit into a block.
        choices: token ids, at least one each.
        advance: told how many prompts are done.
    """
    model.eval()
    device = placement.device
    longest = max(map(len, choices))
    padded = np.zeros((len(choices), longest), dtype=np.int64)
    for row, choice in zip(padded, choices, strict=True):
        row[: len(choice)] = choice
    ids_CL = torch.from_numpy(padded).to(device)
    counts_C = torch.tensor([len(choice) for choice in choices], device=device)
    further_CL = torch.arange(1, longest, device=device)[None] < counts_C[:, None]
    one_pass = max(1, _LOGITS // (model.config.vocabulary * len(choices) * max(1, longest - 1)))
    rows = min(_ROWS, one_pass if longest > 1 else max(1, _LOGITS // model.config.vocabulary))

    found = np.zeros((len(prompts), len(choices)))
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    done = 0
    while done < len(order):
        length = len(prompts[order[done]])
        numbers = [n for n in order[done : done + rows] if len(prompts[n]) == length]
        tokens_BT = torch.from_numpy(np.stack([prompts[n] for n in numbers]).astype(np.int64)).to(device)
        with placement.autocast():
            scores_BC = _scores(model, tokens_BT, ids_CL, further_CL, placement)
        found[numbers] = scores_BC.cpu().numpy()
        done += len(numbers)
        advance(done)
    return found


def _scores(model: GPT, tokens_BT: Tensor, ids_CL: Tensor, further_CL: Tensor, placement: Placement) -> Tensor:
    """(B, C), float64."""
    (B, T), (C, L) = tokens_BT.shape, ids_CL.shape
    cache = FullCache(model.config, batch=B, slots=T + L - 1, device=placement.device, dtype=placement.dtype)
    last_BD = model.hidden(tokens_BT, cache=cache)[:, -1]
    scores_BC = F.log_softmax(model.logits(last_BD).double(), dim=-1)[:, ids_CL[:, 0]]
    if L == 1:
        return scores_BC
    going_on = cache.repeated(C)  # row b C + c goes on from prompt b with choice c
    inputs_XL = ids_CL[:, :-1].repeat(B, 1)
    logs_XLV = F.log_softmax(model(inputs_XL, cache=going_on).double(), dim=-1)
    picked_XL = logs_XLV.gather(2, ids_CL[:, 1:].repeat(B, 1)[:, :, None])[:, :, 0]
    return scores_BC + picked_XL.reshape(B, C, L - 1).where(further_CL, 0.0).sum(dim=-1)
