"""The two sides of a comparison: this project, and an unmodified nanoGPT checkout, each in its own loop."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import CosineSchedule, RunConfig
from bonsaigpt.data.batches import Batch
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import DataError
from bonsaigpt.recipes import flatten
from bonsaigpt.spec import parameter_count
from bonsaigpt.torch_engine.model import load_weights, weights
from bonsaigpt.train.memory import peak_memory_mb
from bonsaigpt.train.schedule import schedule_share

__all__ = ["DECIDED", "Decisions", "NanoGPT", "Ours", "Setup", "Side", "check_nanogpt", "load_model_file"]

DECIDED = (
    "train.compile",
    "train.attention_kernel",
    "train.precision",
    "optim.matrices.precision",
    "train.workers",
    "train.micro_batch",
)
"""Settings that ``engine.resolve`` decides where they are left to it."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a side needs to know."""

    config: RunConfig
    folder: Path
    """Scratch folder: our shards, and nanoGPT's train.bin and val.bin."""
    nanogpt: Path
    threads: int
    """CPU threads of each process; 0 means as many as torch chooses."""
    compile: bool = False
    """Whether nanoGPT is compiled; ours follows ``train.compile``."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What a training computes with, as far as the machine decides it."""

    settings: dict[str, Any]
    """By their dotted names."""
    why: dict[str, str]
    """The engine's reasons."""


class Side(Protocol):
    """What the parent may ask of a side."""

    def parameters(self) -> int:
        """Number of trained values, tied ones once."""
        ...

    def gradient(self, values: Arrays, tokens_BT: np.ndarray, targets_BT: np.ndarray) -> tuple[float, float]:
        """Mean loss in nats of these weights on one batch, and the norm of its gradient, by the side's own code."""
        ...

    def start(self) -> float:
        """Make the first weights and all decisions again; seconds that it took."""
        ...

    def advance(self, steps: int) -> float:
        """Train on; seconds that it took."""
        ...

    def weights(self) -> Arrays:
        """The weights of this moment."""
        ...

    def decisions(self) -> Decisions:
        """How the training computes, and why."""
        ...

    def memory(self) -> float:
        """Peak memory so far, 2^20 bytes."""
        ...


class Ours:
    """This project: the calls of the training loop, without its listeners."""

    def __init__(self, setup: Setup) -> None:
        self.config = self.asked = setup.config
        train = self.asked.train
        self.engine = load_engine("torch", device=train.device, precision=train.precision, threads=setup.threads)
        self.source = open_source(self.asked, setup.folder)
        self.log_interval, self.step = train.log_interval, 0
        self._state: Any = None
        self._why: dict[str, str] = {}

    @property
    def state(self) -> Any:
        """Made when it is first needed: what ``start`` times must not have been decided or compiled before."""
        if self._state is None:
            self.start()
        return self._state

    def start(self) -> float:
        began = time.perf_counter()
        self.config, self._why = self.engine.resolve(self.asked, self.source.batch_at(self.asked.train.steps - 1))
        self._state = self.engine.init(self.config)
        return time.perf_counter() - began

    def parameters(self) -> int:
        return parameter_count(self.config.model)

    def gradient(self, values: Arrays, tokens_BT: np.ndarray, targets_BT: np.ndarray) -> tuple[float, float]:
        if self._state is None:  # nothing is decided yet
            self.start()
        state = self.engine.init(self.config, values)
        batch = Batch(tokens_BT=tokens_BT, targets_BT=targets_BT, count=targets_BT.size)
        metrics = self.engine.step(state, batch, config=self.config, share=0.0, step=0).host()
        return metrics["loss"], metrics["grad_norm"]

    def advance(self, steps: int) -> float:
        state = self.state
        began = time.perf_counter()
        for _ in range(steps):
            share = schedule_share(self.config, self.step)
            batch = self.source.batch_at(self.step)
            metrics = self.engine.step(state, batch, config=self.config, share=share, step=self.step)
            self.step += 1
            if self.step % self.log_interval == 0:
                metrics.host()
        wait_for(self.config.train.device)
        return time.perf_counter() - began

    def weights(self) -> Arrays:
        return self.engine.arrays(self.state)[0]

    def decisions(self) -> Decisions:
        settings = flatten(self.config.model_dump(mode="json"))
        return Decisions(settings={name: settings[name] for name in DECIDED if name in settings}, why=self._why)

    def memory(self) -> float:
        return peak_memory(self.config.train.device)


class NanoGPT:
    """nanoGPT's own model and optimizer from its model.py, in the loop of its train.py (fp32, no compile, CPU)."""

    def __init__(self, setup: Setup) -> None:
        if setup.threads:
            torch.set_num_threads(setup.threads)
        model, optim, train = setup.config.model, setup.config.optim, setup.config.train
        assert isinstance(optim.schedule, CosineSchedule)
        self.bins = setup.folder
        self.block_size, self.batch_size, self.log_interval = model.block_size, train.batch_size, train.log_interval
        self.peak, self.grad_clip = optim.lr, optim.grad_clip
        self.floor, self.warmup, self.decay_steps = optim.lr * optim.schedule.final, optim.schedule.warmup, train.steps
        torch.manual_seed(setup.config.seed)
        file = load_model_file(setup.nanogpt)
        with redirect_stdout(sys.stderr):  # it prints what it makes; stdout is for the figures
            self.model = file.GPT(
                file.GPTConfig(
                    n_layer=model.n_layer,
                    n_head=model.n_head,
                    n_embd=model.n_embd,
                    block_size=model.block_size,
                    vocab_size=model.vocabulary,
                    bias=model.bias,
                    dropout=model.dropout,
                )
            ).to(train.device)
            self.optimizer = self.model.configure_optimizers(
                optim.weight_decay, optim.lr, (optim.beta1, optim.beta2), train.device
            )
        self.model.train()
        self.precision, self.is_compiled = train.precision, setup.compile
        self.device, self.run = train.device, torch.compile(self.model) if setup.compile else self.model
        bf16 = train.precision == "bf16"
        self.autocast = torch.autocast("cuda", torch.bfloat16) if bf16 else nullcontext()
        self.step = 0
        self.ahead = self.get_batch()

    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def start(self) -> float:
        return 0.0  # its weights are made with the model, in far less than a step

    def gradient(self, values: Arrays, tokens_BT: np.ndarray, targets_BT: np.ndarray) -> tuple[float, float]:
        before = weights(self.model)
        load_weights(self.model, values.items())
        with self.autocast:
            _, loss = self.model(*(torch.from_numpy(a).to(self.device) for a in (tokens_BT, targets_BT)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimizer.zero_grad(set_to_none=True)
        load_weights(self.model, before.items())
        return loss.item(), norm.item()

    def get_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As its train.py draws one: a fresh memory map each time, windows with replacement, rows stacked."""
        data = np.memmap(self.bins / "train.bin", dtype=np.uint16, mode="r")
        T = self.block_size
        starts = torch.randint(len(data) - T, (self.batch_size,))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
        if self.device != "cpu":
            return x.pin_memory().to(self.device, non_blocking=True), y.pin_memory().to(self.device, non_blocking=True)
        return x, y

    def learning_rate(self) -> float:
        """Warmup, then half a cosine, then the floor."""
        if self.step < self.warmup:
            return self.peak * (self.step + 1) / (self.warmup + 1)
        if self.step > self.decay_steps:
            return self.floor
        progress = (self.step - self.warmup) / (self.decay_steps - self.warmup)
        return self.floor + 0.5 * (1.0 + math.cos(math.pi * progress)) * (self.peak - self.floor)

    def advance(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            lr = self.learning_rate()
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            with self.autocast:
                _, loss = self.run(*self.ahead)
            self.ahead = self.get_batch()  # its train.py fetches here, between forward and backward
            loss.backward()
            if self.grad_clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % self.log_interval == 0:
                loss.item()
        wait_for(self.device)
        return time.perf_counter() - began

    def weights(self) -> Arrays:
        return weights(self.model)  # names and shapes are nanoGPT's in both

    def decisions(self) -> Decisions:
        settings = {"train.precision": self.precision, "train.compile": "on" if self.is_compiled else "off"}
        return Decisions(settings=settings, why={})

    def memory(self) -> float:
        return peak_memory(self.device)


def wait_for(device: str) -> None:
    """Let the device finish, so that the clock is read after the work."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(device: str) -> float:
    """Peak memory in 2^20 bytes: of the device on a GPU, else of this process."""
    return torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else peak_memory_mb()


def check_nanogpt(path: Path) -> Path:
    """The checkout, if it is one.

    Raises:
        DataError: no model.py there.
    """
    path = path.expanduser().resolve()
    if not (path / "model.py").is_file():
        raise DataError(
            f"{path} has no model.py: clone nanoGPT (https://github.com/karpathy/nanoGPT) and give its path, "
            "--nanogpt PATH."
        )
    return path


def load_model_file(nanogpt: Path) -> ModuleType:
    """Its model.py, as it is."""
    specification = importlib.util.spec_from_file_location("nanogpt_model", nanogpt / "model.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    specification.loader.exec_module(module)
    return module
