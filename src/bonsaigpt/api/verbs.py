"""What begins with a recipe, an address, or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bonsaigpt.api.run import Run, train_words
from bonsaigpt.api.words import Settings, flags, leave_if_stopped, setting_flags, shown, word
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import home, run_folder
from bonsaigpt.cli.prepare import prepare_corpora
from bonsaigpt.cli.sweep import sweep_runs
from bonsaigpt.data.shards import Corpus
from bonsaigpt.report import write_comparison
from bonsaigpt.study.plan import axis_word
from bonsaigpt.study.results import Summary

__all__ = ["compare", "load", "prepare", "sweep", "train"]


def train(
    recipe: str | Path,
    *,
    steps: int | None = None,
    name: str | None = None,
    init: str | Path | Run | None = None,
    auto_resume: bool = False,
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
        runs: folder of the runs (default: ``$BONSAI_RUNS`` or ``runs``).
        corpora: folder of token shards (default: ``$BONSAI_CORPORA`` or ``corpora``).

    Raises:
        ConfigError: a setting is misspelt or impossible.
        OutputError: there is a run of that name.
        DataError: the text is missing or too short.
        KeyboardInterrupt: Ctrl-C; the run is saved, and ``auto_resume`` or its ``resume()`` goes on with it.
    """
    start = init.address if isinstance(init, Run) else init
    words = flags(name=name, init=start, auto_resume=auto_resume, runs=runs, corpora=corpora)
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

    Returns:
        The points, with means and intervals over seeds, in nats.
    """
    axes = [f"--grid={axis}={','.join(axis_word(word(v)) for v in values)}" for axis, values in (grid or {}).items()]
    words = flags(seeds=seeds, jobs=jobs, name=name, runs=runs, corpora=corpora)
    with shown(quiet):
        summaries, code = sweep_runs([str(recipe), *axes, *words, *setting_flags(settings)])
    leave_if_stopped(code, "all is saved: the same call goes on")
    return summaries


def compare(runs: Sequence[Run | str | Path], html: Path | str = "compare.html") -> Path:
    """A page that lays the curves of runs over each other: `bonsai compare`."""
    found = [run.directory if isinstance(run, Run) else RunDirectory.open(Path(run)) for run in runs]
    return write_comparison(found, Path(html))
