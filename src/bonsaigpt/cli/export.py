"""`bonsai export`: a model for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from bonsaigpt import __version__
from bonsaigpt.cli.common import Opened, Parser, open_model, runs_folder
from bonsaigpt.config import dump_toml
from bonsaigpt.errors import ConfigError
from bonsaigpt.interop.card import model_card
from bonsaigpt.interop.writing import family_for, write_folder
from bonsaigpt.report.history import read_history
from bonsaigpt.spec import parameter_count
from bonsaigpt.units import count, size

__all__ = ["run"]

_EXAMPLE = """  bonsai export runs/shakespeare-char --to hf
  bonsai export runs/first@last --to hf --dtype bf16 --out models/first"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "export",
        "Write a model for other programs: hf, a folder that transformers' AutoModelForCausalLM and AutoTokenizer load "
        "without any code of ours. Factored weights are multiplied out first.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument("--to", choices=["hf"], default="hf", help="the format (default: hf)")
    parser.add_argument("--out", type=Path, metavar="PATH", help="where to (default: inside the run, in export/)")
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="number format of weights (default: fp32)"
    )
    runs_folder(parser)
    arguments = parser.parse(argv)
    opened = open_model(arguments.model, runs=arguments.runs)
    target = arguments.out or _inside(opened, arguments.to)
    console = Console()
    family = write_folder(
        target,
        opened.config,
        opened.weights,
        opened.tokenizer,
        origin=opened.label,
        card=_card(opened, target.name if opened.run is None else opened.run.path.name, arguments),
        dtype=arguments.dtype,
    )
    held = sum(file.stat().st_size for file in target.iterdir())
    words = f"{target}: {family.architecture}, {size(held)}; AutoModelForCausalLM.from_pretrained('{target}') loads it"
    console.print(words, highlight=False, markup=False, soft_wrap=True)
    return 0


def _inside(opened: Opened, kind: str) -> Path:
    if opened.run is None:
        raise ConfigError(f"{opened.label} is no run to put an export into: say where to with --out PATH.")
    return opened.run.path / "export" / kind


def _card(opened: Opened, name: str, arguments: argparse.Namespace) -> str:
    family, _ = family_for(opened.config, origin=opened.label)
    config = opened.config
    prompt = opened.run.config.train.sample_prompt if opened.run is not None else ""
    facts = {
        "parameters": count(parameter_count(config)),
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
        "vocabulary": f"{config.vocabulary:,}",
        "architecture": family.architecture,
        "prompt": json.dumps(prompt if prompt.strip() else "The")[1:-1],
    }
    measured, made = {}, {"bonsaigpt": __version__, "weights": arguments.dtype}
    if opened.run is None:
        return model_card(name, facts, measured, made | {"from": opened.label})
    history = read_history(opened.run)
    evaluation = next((e for e in history.evaluations if e["step"] == opened.step), {})
    units = {
        "val_loss": "validation loss, nats a token",
        "val_perplexity": "perplexity a token",
        "val_bits_per_byte": "bits per byte",
        "val_exact": "exactly right, share of rows",
    }
    measured = {words: f"{evaluation[key]:.4f}" for key, words in units.items() if key in evaluation}
    made |= {
        "checkpoint": f"step {opened.step}",
        "tokens seen": f"{evaluation.get('tokens', history.tokens):,}",
        "data": f"{opened.run.config.data.kind}, {history.environment.get('data', 'unknown')}",
        "command": f"`{history.environment.get('command', 'unknown')}`",
    }
    return model_card(name, facts, measured, made, dump_toml(opened.run.config))
