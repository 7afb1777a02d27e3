"""`bonsai parity`: engines that agree, and faults that it must name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax

from bonsaigpt.cli import main
from bonsaigpt.jax_engine import optim


def plant(monkeypatch: pytest.MonkeyPatch, place: str, fault: Any) -> None:
    """Change a piece of the JAX engine, whose programs are then compiled anew."""
    monkeypatch.setattr(place, fault)
    monkeypatch.setattr("bonsaigpt.jax_engine.compiling._PROGRAMS", {})


def test_engines_agree_and_each_planted_fault_is_named(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", "runs/tiny@4"]) == 0
    assert "runs/tiny@4: the engines agree" in (out := capsys.readouterr().out)
    assert "parts" not in out
    gelu, clip = jax.nn.gelu, optim.clip
    with monkeypatch.context() as patch:  # the known trap: JAX's own default is the other formula
        plant(patch, "jax.nn.gelu", lambda x, approximate: gelu(x))
        assert main(["parity", "runs/tiny@4"]) == 1
    assert "first in activations, transformer.h.0.mlp: " in capsys.readouterr().out
    with monkeypatch.context() as patch:
        plant(patch, "bonsaigpt.jax_engine.optim.clip", lambda config, g: (g, clip(config, g)[1]))
        assert main(["parity", "runs/tiny@4"]) == 1
    out = capsys.readouterr().out
    assert "first in step, " in out
    assert out.count("parts in") == 1  # all that comes before agrees


def test_what_cannot_be_compared_is_one_sentence(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model.attention.kind", "latent", "--train.steps", "1", "--name", "latent"]
    assert main(["train", "tiny.toml", *flags]) == 0
    capsys.readouterr()
    for words, said in (
        (["runs/latent"], "the JAX engine does not compute latent attention"),
        (["runs/nobody"], "runs/nobody"),
        (["runs/tiny", "--engine", "jaxx"], "Did you mean 'jax'"),
        (["runs/tiny", "--tokens", "0"], "use 1 or more"),
    ):
        assert main(["parity", *words]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line
