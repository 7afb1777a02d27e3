"""What begins with a recipe, an address, or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bonsaigpt.api.run import Run, train_words
from bonsaigpt.api.words import Settings, flags, leave_if_stopped, setting_flags, shown, word
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import home, run_folder
from bonsaigpt.cli.export import export_model
from bonsaigpt.cli.fetch import fetch_folder
from bonsaigpt.cli.parity import engines_apart
from bonsaigpt.cli.prepare import prepare_corpora
from bonsaigpt.cli.sweep import sweep_runs
from bonsaigpt.data.shards import Corpus
from bonsaigpt.measure.parity import Difference
from bonsaigpt.report import write_comparison
from bonsaigpt.study.plan import axis_word
from bonsaigpt.study.results import Summary

__all__ = ["compare", "export", "fetch", "load", "parity", "prepare", "sweep", "train"]


def train(
    recipe: str | Path,
    *,
    steps: int | None = None,
    name: str | None = None,
    init: str | Path | Run | None = None,
    auto_resume: bool = False,
    engine: Literal["torch", "jax"] | None = None,
    runs: Path | str | None = None,
    corpora: Path | str | None = None,
    settings: Settings | None = None,
    quiet: bool = False,
) -> Run:
    """Grow a model: `bonsai train`.

    Args:
        recipe: its name, a TOML file, or the folder of a run whose configuration is meant.
        steps: optimizer steps, short for the setting ``train.steps``.
        name: of the run (default: the recipe's).
        init: begin with the weights of another run.
        auto_resume: go on with the run of that name if there is one, and leave a finished one as it is.
        engine: what computes, short for the setting ``train.engine``.
        runs: folder of the runs (default: ``$BONSAI_RUNS`` or ``runs``).
        corpora: folder of token shards (default: ``$BONSAI_CORPORA`` or ``corpora``).

    Raises:
        ConfigError: a setting is misspelt or impossible.
        OutputError: there is a run of that name.
        DataError: the text is missing or too short.
        KeyboardInterrupt: Ctrl-C; the run is saved, and ``auto_resume`` or its ``resume()`` goes on with it.
    """
    start = None if init is None else _address(init)
    words = flags(name=name, init=start, auto_resume=auto_resume, engine=engine, runs=runs, corpora=corpora)
    return train_words([str(recipe), *words, *setting_flags(settings, steps)], corpora, quiet)


def load(
    address: str | Path,
    *,
    runs: Path | str | None = None,
    corpora: Path | str | None = None,
    engine: Literal["torch", "jax"] = "torch",
    device: str = "auto",
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] | None = None,
    threads: int = 0,
) -> Run:
    """Open what there is: ``runs/NAME`` (its best checkpoint, else the last), ``runs/NAME@last``, ``runs/NAME@500``, or
    a folder in Hugging Face's format, or a .pt of nanoGPT's.

    Args:
        engine: ``torch``, or ``jax``, whichever it was trained in.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: number format (default: float32 for a run that was trained in it, else ``auto``).
        threads: of the CPU; 0: as many as torch chooses.

    Raises:
        CheckpointError: nothing there, damaged, or of a kind that cannot be read.
    """
    place = run_folder(str(address), home("runs", runs))
    run = Run(place, corpora=corpora, engine=engine, device=device, precision=precision, threads=threads)
    _ = run.opened  # what is wrong is said now
    return run


def prepare(
    source: str,
    *,
    download: bool = False,
    workers: int | None = None,
    corpora: Path | str | None = None,
    settings: Settings | None = None,
    quiet: bool = False,
) -> list[Corpus]:
    """Tokenise a source into verified shards: `bonsai prepare`. `train` does it by itself, but never downloads.

    Args:
        source: a kind of source (``files``, ``shakespeare``, ...), or a recipe or run whose data are meant.
        download: whether a source that is not on this disk may use the network.
        workers: processes that clean and encode.

    Returns:
        The corpus; of a mixture those of its parts.
    """
    words = [source, *flags(download=download, workers=workers, corpora=corpora), *setting_flags(settings)]
    with shown(quiet):
        return prepare_corpora(words)


def sweep(
    recipe: str | Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int = 1,
    jobs: int = 1,
    retry: bool = False,
    executor: Literal["pool", "slurm", "local-submitit"] | None = None,
    submitit: Mapping[str, Any] | None = None,
    name: str | None = None,
    runs: Path | str | None = None,
    corpora: Path | str | None = None,
    settings: Settings | None = None,
    quiet: bool = False,
) -> list[Summary]:
    """Train a recipe at every point of a grid with several seeds: `bonsai sweep`. Called again, it goes on.

    Args:
        grid: values by the name of a setting; the first point is what the others are compared with.
        seeds: repetitions of each point.
        jobs: runs at once.
        retry: try again what has failed in an earlier call.
        executor: processes here, or jobs of a cluster.
        submitit: options of submitit's, e.g. ``{"timeout_min": 60}``.

    Returns:
        The points, with means and intervals over seeds, in nats.
    """
    axes = [f"--grid={axis}={','.join(axis_word(word(v)) for v in values)}" for axis, values in (grid or {}).items()]
    options = [f"{key}={value}" for key, value in (submitit or {}).items()]
    words = flags(seeds=seeds, jobs=jobs, retry=retry, executor=executor, submitit=options, name=name)
    words += flags(runs=runs, corpora=corpora)
    with shown(quiet):
        summaries, code = sweep_runs([str(recipe), *axes, *words, *setting_flags(settings)])
    leave_if_stopped(code, "all is saved: the same call goes on")
    return summaries


def fetch(name: str, *, revision: str | None = None, out: Path | str | None = None, quiet: bool = False) -> Run:
    """A model of the Hugging Face hub, fetched into a folder and opened: `bonsai fetch`, which alone fetches models.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit (default: the newest commit).
        out: the folder (default: ``models/NAME``).
    """
    with shown(quiet):
        return load(fetch_folder([name, *flags(revision=revision, out=out)]))


def export(
    model: Run | str | Path,
    *,
    to: Literal["hf", "gguf", "torch", "onnx"] = "hf",
    out: Path | str | None = None,
    dtype: Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"] = "fp32",
    factored: bool = False,
    quiet: bool = False,
) -> Path:
    """Write a model for other programs: `bonsai export`.

    Args:
        model: a run, or an address as `load` takes it.
        to: the format: a folder for transformers, a file for llama.cpp, a graph for torch or ONNX Runtime.
        out: where to (default: inside the run).
        dtype: of the weights.
        factored: leave factored weights as they are, in a graph.

    Returns:
        The file or folder.
    """
    with shown(quiet):
        return export_model([_address(model), *flags(to=to, out=out, dtype=dtype, factored=factored)])


def parity(
    model: Run | str | Path,
    *,
    engine: str = "jax",
    device: str = "auto",
    tokens: int | None = None,
    quiet: bool = False,
) -> list[Difference]:
    """One training step of a checkpoint in another engine and in PyTorch: `bonsai parity`.

    Args:
        model: a run, or an address as `load` takes it.
        engine: what is held against PyTorch on the CPU.
        device: that engine's.
        tokens: of each of two random rows.

    Returns:
        Every tensor; ``parts`` says whether the engines part in it.
    """
    with shown(quiet):
        return engines_apart([_address(model), *flags(engine=engine, device=device, tokens=tokens)])


def compare(runs: Sequence[Run | str | Path], html: Path | str = "compare.html") -> Path:
    """A page that lays the curves of runs over each other: `bonsai compare`."""
    found = [run.directory if isinstance(run, Run) else RunDirectory.open(Path(run)) for run in runs]
    return write_comparison(found, Path(html))


def _address(model: Run | str | Path) -> str:
    return model.address if isinstance(model, Run) else str(model)
