"""The study of compression: what it pairs, what it chooses by, what it writes, and its verdict."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.config import RunConfig, derive, validate
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.errors import ConfigError
from bonsaigpt.measure import evaluate
from bonsaigpt.spec import parameter_count
from bonsaigpt.study.compress import SCRATCH, Bench, Cell, Losses, against, best_of, frontier, losses
from bonsaigpt.study.compress_page import CompressStudy, compress_table, write_compress

DENSE = Losses(1.0, 1.1)


def cell(kind: str, *found: tuple[float, float], share: float = 0.5, heal: int = 0, stored: int = 50) -> Cell:
    """Of losses on the first and the second half, by seed."""
    made = tuple(Losses(*pair) for pair in found)
    return Cell(kind=kind, share=share, heal=heal, becomes=kind, stored=stored, losses=made, dense=DENSE, speed=9.0)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Bench:
    """Two layers of width 16 after a few steps."""
    engine: Engine = load_engine("torch", device="cpu", threads=1, workers=1)
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8}
    data = {"kind": "files", "path": str(tiny_text), "tokenizer": {"kind": "chars"}}
    train = {"steps": 40, "device": "cpu", "precision": "fp32", "compile": "off", "workers": 1, "micro_batch": 12}
    settings = {"model": model, "data": data, "train": train | {"attention_kernel": "sdpa"}, "optim": {"lr": 1e-2}}
    config: RunConfig = validate(settings, origin="t")
    source = open_source(config, tmp_path_factory.mktemp("corpora"))
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    state = engine.init(config)
    for step in range(40):
        engine.step(state, source.batch_at(step), config=config, share=1.0, step=step)
    return Bench(engine, config, engine.arrays(state)[0], source, None, tokens=500, seconds=0.01)


def test_the_halves_are_the_whole(bench: Bench) -> None:
    model = bench.engine.model(bench.config.model, bench.values)
    found, counts = losses(bench.engine, model, bench.source), [b.count for b in bench.source.validation()]
    first, rest = sum(counts[: len(counts) // 2]), sum(counts[len(counts) // 2 :])
    whole = evaluate(bench.engine, model, bench.source).loss
    assert (first * found.validation + rest * found.test) / (first + rest) == pytest.approx(whole, abs=1e-6)
    assert found.validation != found.test


def test_the_grid_is_at_equal_values_and_seeds_differ(bench: Bench) -> None:
    cells = list(bench.cells(["lowrank", "narrow", SCRATCH], [0.5], [0, 2], 2))
    assert [(c.kind, c.heal) for c in cells] == [
        ("lowrank", 0), ("lowrank", 2), ("narrow", 0), ("narrow", 2), (SCRATCH, 2)
    ]  # fmt: skip
    mlp = 2 * 2 * 16 * 64
    whole = parameter_count(bench.config.model)
    for one in cells:
        assert 0.4 * mlp <= one.stored - (whole - mlp) <= 0.5 * mlp
        assert one.bytes == 4 * one.stored
        assert one.losses[0] != one.losses[1]
        assert one.speed > 0
    again = next(iter(bench.cells(["lowrank"], [0.5], [0], 1)))
    assert again.losses[0] == cells[0].losses[0]
    assert bench.dense.cost.mean == 0.0


def test_scratch_is_for_whole_mlps(bench: Bench) -> None:
    other = Bench(bench.engine, bench.config, bench.values, bench.source, None, layers=("*.attn.*",))
    with pytest.raises(ConfigError, match="scratch"):
        list(other.cells([SCRATCH], [0.5], [1], 1))


def test_the_choice_is_by_the_first_half_and_told_on_the_second() -> None:
    fine = cell("fine", (1.0, 2.0), (1.1, 2.1))
    poor = cell("poor", (1.5, 1.0), (1.5, 1.2))  # the better one by the half that must not be looked at
    assert best_of([poor, fine]) is fine
    assert against(poor, fine).mean == pytest.approx(-0.95)
    assert fine.cost.mean == pytest.approx(0.95)


def test_the_frontier_is_what_nothing_beats() -> None:
    cells = [cell("a", (0, 1.5), stored=10), cell("b", (0, 1.4), stored=20), cell("c", (0, 1.45), stored=30)]
    assert frontier(cells, lambda c: c.stored) == [True, True, False]
    assert frontier(cells, lambda c: -c.stored) == [False, True, True]


def test_the_verdict_says_what_is_beyond_chance(tmp_path: Path) -> None:
    best = cell("kronecker", (1.0, 1.20), (1.0, 1.21), (1.0, 1.19))
    worse = cell("lowrank", (1.1, 1.30), (1.1, 1.312), (1.1, 1.291))
    alike = cell("narrow", (1.1, 1.10), (1.1, 1.41), (1.1, 1.19))
    study = CompressStudy(
        label="runs/it's <b>@9", command="bonsai study compress", healed="the text alone",
        dense=cell("dense", (1.0, 1.1), share=1.0, stored=90), cells=[best, worse, alike],
    )  # fmt: skip
    assert "At 50%, before healing: kronecker, +0.1000 ±" in study.verdict
    assert study.verdict.count("(beyond chance)") == 1
    assert study.verdict.count("(within chance)") == 1
    header, rows = compress_table(study)
    assert [row[header.index("")] for row in rows] == ["", "*", "", ""]
    page, image, table = write_compress(study, tmp_path)
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "<b>@9" not in page.read_text(encoding="utf-8")
    found = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [row["best"] for row in found] == ["1", "1", "0", "0"]
    assert float(found[2]["to_best"]) == pytest.approx(0.101, abs=1e-6)
    assert found[1]["bytes"] == "200"


def test_the_verb_writes_page_plot_and_table(
    tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    Path("r.toml").write_text(
        f"[data]\nkind = 'files'\npath = '{tiny_text.as_posix()}'\ntokenizer = {{kind = 'chars'}}\n"
        "[model]\nn_layer = 1\nn_head = 2\nn_embd = 16\nblock_size = 8\n"
        "[train]\nsteps = 2\nthreads = 1\ndevice = 'cpu'\ncompile = 'off'\nworkers = 1\n",
        encoding="utf-8",
    )
    assert main(["train", "r.toml", "--name", "mine"]) == 0
    few = ["--structure", "lowrank,scratch", "--share", "0.5", "--heal", "0,1", "--seeds", "2", "--calibrate", "200"]
    capsys.readouterr()
    assert main(["study", "compress", "runs/mine", *few, "--seconds", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "before healing: lowrank" in said
    assert all((Path("runs/mine/studies") / f"compress.{end}").is_file() for end in ("html", "png", "csv"))
    for bad in (["--share", "2"], ["--heal", "-1"], ["--structure", "krone"], ["--seconds", "0"]):
        assert main(["study", "compress", "runs/mine", *bad]) == 2
        assert bad[0] in capsys.readouterr().err
