"""Who decodes in decode_speed.py: this project, nanoGPT, LitGPT, Hugging Face, and NumPy, each as its users would.

All but LitGPT compute the same GPT-2 with the same weights; LitGPT has no learned positions, so it computes its own GPT
of the same shape with RoPE and random weights. All choose the likeliest token, but nanoGPT, whose ``generate`` draws.
"""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sides import load_model_file

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig
from bonsaigpt.engines import load_engine
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.torch_engine.model import load_weights

__all__ = ["SIDES", "DecodeSetup", "DecodeSide"]


@dataclass(frozen=True, kw_only=True)
class DecodeSetup:
    """All that a side needs to know."""

    config: ModelConfig
    nanogpt: Path | None
    threads: int
    device: str = "cpu"
    precision: str = "fp32"

    @property
    def where(self) -> dict[str, Any]:
        """Device and number format, for ``torch.nn.Module.to``."""
        return {"device": self.device, "dtype": torch.bfloat16 if self.precision == "bf16" else torch.float32}

    def values(self) -> Arrays:
        """Weights of ten times the usual size, so that the likeliest tokens stand out and texts can be compared."""
        made = {p.name: initial_value(p, 0) for p in parameters(self.config) if p.tied_to is None}
        return {name: v if v.ndim == 1 else v * np.float32(5) for name, v in made.items()}


class DecodeSide(Protocol):
    """What the parent may ask of a side."""

    about: str

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Of the token after these, to see that all compute the same; empty if it is another model."""
        ...

    def generate(self, prompt: np.ndarray, new: int) -> float:
        """Continue a prompt by so many tokens; seconds."""
        ...


class Ours:
    """The decoder, with the host choosing each token."""

    weights: Any = "fp32"

    def __init__(self, setup: DecodeSetup) -> None:
        self.engine = load_engine("torch", device=setup.device, precision=setup.precision, threads=setup.threads)
        self.model = self.engine.model(setup.config, setup.values())
        self.decoder = self.engine.decoder(self.model, rows=16, weights=self.weights)
        self.about = self.decoder.why

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        if self.weights != "fp32":
            return np.zeros(0)
        self.decoder.truncate(0, 0)
        return self.decoder.prefill(0, tokens).copy()

    def generate(self, prompt: np.ndarray, new: int) -> float:
        decoder, row = self.decoder, np.zeros(1, dtype=np.int64)
        began = time.perf_counter()
        decoder.truncate(0, 0)
        token = np.array([decoder.prefill(0, prompt).argmax()])
        for _ in range(new - 1):
            token = decoder.step(row, token).argmax(axis=1)
        return time.perf_counter() - began

    def first(self, prompt: np.ndarray) -> float:
        """Seconds from a prompt to its first token."""
        return self.generate(prompt, 1)

    def batch(self, prompts: list[np.ndarray], new: int) -> tuple[float, float]:
        """Seconds to continue the prompts by ``new`` tokens each, first one after the other, then all at once; both
        after the prompts were read."""
        decoder, rows = self.decoder, np.arange(len(prompts))
        seconds: list[float] = []
        for together in (False, True):
            tokens = np.zeros(len(prompts), dtype=np.int64)
            for row, prompt in enumerate(prompts):
                decoder.truncate(row, 0)
                tokens[row] = decoder.prefill(row, prompt).argmax()
            began = time.perf_counter()
            for part in [rows] if together else np.split(rows, len(rows)):
                chosen = tokens[part]
                for _ in range(new):
                    chosen = decoder.step(part, chosen).argmax(axis=1)
            seconds.append(time.perf_counter() - began)
        return seconds[0], seconds[1]


class OursInt8(Ours):
    """The same with int8 weights."""

    weights = "int8"


class NanoGPT:
    """nanoGPT's own model and its own ``generate``, which reads the whole context for each token."""

    def __init__(self, setup: DecodeSetup) -> None:
        assert setup.nanogpt is not None
        torch.set_num_threads(setup.threads or torch.get_num_threads())
        file, c = load_model_file(setup.nanogpt), setup.config
        shape = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "block_size": c.block_size}
        with redirect_stdout(sys.stderr):
            self.model = file.GPT(file.GPTConfig(**shape, vocab_size=c.vocabulary, bias=False, dropout=0.0)).eval()
        load_weights(self.model, setup.values().items())
        self.model.to(**setup.where)
        self.device, self.about = setup.device, "no cache"

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.model(torch.from_numpy(tokens)[None].to(self.device))[0][0, -1].float().cpu().numpy()

    @torch.inference_mode()
    def generate(self, prompt: np.ndarray, new: int) -> float:
        began = time.perf_counter()
        self.model.generate(torch.from_numpy(prompt)[None].to(self.device), new).cpu()
        return time.perf_counter() - began


class LitGPT:
    """LitGPT's model and its ``generate``, with its cache."""

    def __init__(self, setup: DecodeSetup) -> None:
        from litgpt.config import Config  # type: ignore[import-not-found]
        from litgpt.generate.base import generate  # type: ignore[import-not-found]
        from litgpt.model import GPT  # type: ignore[import-not-found]

        torch.set_num_threads(setup.threads or torch.get_num_threads())
        c = setup.config
        config = Config(
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_embd=c.n_embd,
            block_size=c.block_size,
            vocab_size=c.vocabulary,
            padded_vocab_size=c.vocabulary,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
        )
        torch.manual_seed(0)
        self.model, self.run = GPT(config).eval().to(**setup.where), generate
        self.model.max_seq_length = c.block_size
        self.model.set_kv_cache(batch_size=1, **setup.where)
        self.device, self.about = setup.device, "RoPE; its own cache"

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return np.zeros(0)

    @torch.inference_mode()
    def generate(self, prompt: np.ndarray, new: int) -> float:
        began = time.perf_counter()
        text = torch.from_numpy(prompt).to(self.device)
        made = self.run(self.model, text, len(prompt) + new, temperature=0.0).cpu()
        seconds = time.perf_counter() - began
        assert len(made) == len(prompt) + new
        return seconds


class HuggingFace:
    """transformers' GPT2LMHeadModel and its ``generate``, with its cache."""

    def __init__(self, setup: DecodeSetup) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.set_num_threads(setup.threads or torch.get_num_threads())
        c = setup.config
        shape: Any = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "n_positions": c.block_size}
        ids: Any = {"bos_token_id": None, "eos_token_id": None}
        config = GPT2Config(**shape, **ids, vocab_size=c.vocabulary, activation_function="gelu")
        self.model: Any = GPT2LMHeadModel(config).eval()
        values = setup.values()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name not in values:
                    parameter.zero_()  # biases, which it cannot do without
                else:  # its matrices inside blocks are (in, out)
                    value = torch.from_numpy(values[name])
                    parameter.copy_(value.T if ".h." in name and value.ndim == 2 else value)
        self.model.to(**setup.where)
        self.device, self.about = setup.device, "its own cache"

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.model(torch.from_numpy(tokens)[None].to(self.device)).logits[0, -1].float().cpu().numpy()

    @torch.inference_mode()
    def generate(self, prompt: np.ndarray, new: int) -> float:
        began = time.perf_counter()
        ids = torch.from_numpy(prompt)[None].to(self.device)
        mask = torch.ones_like(ids)
        options: Any = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        made = self.model.generate(ids, attention_mask=mask, **options).cpu()
        seconds = time.perf_counter() - began
        assert made.shape[1] == len(prompt) + new
        return seconds


class NumPy:
    """The same in NumPy with a cache, as one would write it: a line for each product."""

    def __init__(self, setup: DecodeSetup) -> None:
        self.c, self.w = setup.config, setup.values()
        shape = (self.c.n_layer, self.c.n_head, self.c.block_size, self.c.head_width)
        self.k, self.v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.about = "a cache of its own"

    def step(self, token: int, t: int) -> np.ndarray:
        c, w = self.c, self.w
        x = w["transformer.wte.weight"][token] + w["transformer.wpe.weight"][t]
        for layer in range(c.n_layer):
            block = f"transformer.h.{layer}."
            qkv = w[block + "attn.c_attn.weight"] @ _norm(x, w[block + "ln_1.weight"])
            q, self.k[layer, :, t], self.v[layer, :, t] = qkv.reshape(3, c.n_head, c.head_width)
            scores = (self.k[layer, :, : t + 1] @ q[:, :, None])[:, :, 0] / np.float32(c.head_width**0.5)
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            y = (shares[:, None] @ self.v[layer, :, : t + 1]).reshape(-1)
            x = x + w[block + "attn.c_proj.weight"] @ y
            h = w[block + "mlp.c_fc.weight"] @ _norm(x, w[block + "ln_2.weight"])
            x = x + w[block + "mlp.c_proj.weight"] @ _gelu(h)
        return w["transformer.wte.weight"] @ _norm(x, w["transformer.ln_f.weight"])

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return [self.step(int(token), t) for t, token in enumerate(tokens)][-1]

    def generate(self, prompt: np.ndarray, new: int) -> float:
        began = time.perf_counter()
        logits = self.logits(prompt)
        for t in range(len(prompt), len(prompt) + new - 1):
            logits = self.step(int(logits.argmax()), t)
        return time.perf_counter() - began


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x - x.mean()
    return x / np.sqrt((x * x).mean() + np.float32(1e-5)) * weight


def _gelu(x: np.ndarray) -> np.ndarray:
    """By Abramowitz and Stegun 1964, formula 7.1.26: NumPy has no erf."""
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    y = np.float32(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y = y * t + np.float32(c)
    return np.float32(0.5) * x * (1 + np.sign(x) * (1 - y * t * np.exp(-z * z)))


SIDES: dict[str, Any] = {
    "ours": Ours,
    "ours int8": OursInt8,
    "NumPy": NumPy,
    "LitGPT": LitGPT,
    "Hugging Face": HuggingFace,
    "nanoGPT": NanoGPT,
}
