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
from bonsaigpt.interop.gguf_file import write_gguf
from bonsaigpt.interop.writing import family_for, write_folder
from bonsaigpt.report.history import read_history
from bonsaigpt.spec import parameter_count
from bonsaigpt.units import count, size

__all__ = ["run"]

_EXAMPLE = """  bonsai export runs/shakespeare-char --to hf
  bonsai export runs/first@last --dtype bf16 --out models/first
  bonsai export runs/first --to gguf --dtype q8_0"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "export",
        "Write a model for other programs: hf, a folder that transformers' AutoModelForCausalLM and AutoTokenizer load "
        "without any code of ours; gguf, one file for llama.cpp and what is built on it. Factored weights are "
        "multiplied out first.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument("--to", choices=["hf", "gguf"], default="hf", help="the format (default: hf)")
    parser.add_argument("--out", type=Path, metavar="PATH", help="where to (default: inside the run, in export/)")
    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16", "fp16", "q8_0", "q4_0"],
        default="fp32",
        help="number format of weights; in gguf alone q8_0 and q4_0: 8 or 4 bits and a scale for every 32 numbers "
        "(default: fp32)",
    )
    runs_folder(parser)
    arguments = parser.parse(argv)
    if arguments.to == "hf" and arguments.dtype in ("q8_0", "q4_0"):
        raise ConfigError(f"--dtype {arguments.dtype} is a format of GGUF files: give --to gguf, or another format.")
    opened = open_model(arguments.model, runs=arguments.runs)
    target, words = _EXPORTS[arguments.to](opened, arguments)
    files = target.iterdir() if target.is_dir() else [target]
    told = f"{target}: {words}, {size(sum(file.stat().st_size for file in files))}"
    Console().print(told, highlight=False, markup=False, soft_wrap=True)
    return 0


def _to_folder(opened: Opened, arguments: argparse.Namespace) -> tuple[Path, str]:
    target = arguments.out or _inside(opened, "hf")
    family = write_folder(
        target,
        opened.config,
        opened.weights,
        opened.tokenizer,
        origin=opened.label,
        card=_card(opened, _name(opened, target), arguments.dtype),
        dtype=arguments.dtype,
    )
    return target, f"{family.architecture} for AutoModelForCausalLM.from_pretrained"


def _to_gguf(opened: Opened, arguments: argparse.Namespace) -> tuple[Path, str]:
    target = arguments.out or _inside(opened, f"model-{arguments.dtype}.gguf")
    family = write_gguf(
        target,
        opened.config,
        opened.weights,
        opened.tokenizer,
        origin=opened.label,
        name=_name(opened, target),
        dtype=arguments.dtype,
    )
    return target, f"{family.model_type} for llama.cpp"


_EXPORTS = {"hf": _to_folder, "gguf": _to_gguf}


def _name(opened: Opened, target: Path) -> str:
    return target.stem if opened.run is None else opened.run.path.name


def _inside(opened: Opened, name: str) -> Path:
    if opened.run is None:
        raise ConfigError(f"{opened.label} is no run to put an export into: say where to with --out PATH.")
    return opened.run.path / "export" / name


def _card(opened: Opened, name: str, dtype: str) -> str:
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
    measured, made = {}, {"bonsaigpt": __version__, "weights": dtype}
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
