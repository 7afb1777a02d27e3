"""The pages: every figure from the files, nothing from outside, the same bytes twice, and no run too broken to show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import RunConfig, validate
from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.errors import OutputError
from bonsaigpt.report import comparison, write_comparison, write_report
from bonsaigpt.report.curves import Curve, chart, smooth, smoothed
from bonsaigpt.report.history import read_history
from bonsaigpt.spec import parameter_count

SCRIPT = "<script>alert('&')</script>"


def config(**model: Any) -> RunConfig:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 4, "vocab_size": 3}
    return validate(
        {"model": sizes | model, "train": {"steps": 40, "batch_size": 2}, "data": {"kind": "stdlib"}}, origin="the test"
    )


def make(
    path: Path, *, losses: tuple[float, ...] = (3.0, 2.0, 1.5), steps: int = 40, tokens: int = 8, **model: Any
) -> RunDirectory:
    """A run whose evaluations lie evenly over its steps; a log line every step."""
    environment = {"device": "cpu", "why": f"because {SCRIPT}", "command": f"bonsai train x --about '{SCRIPT}'"}
    run = RunDirectory.create(path, config(**model), CharTokenizer("abc"), environment)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        at = {"step": step, "tokens": step * tokens, "seconds": step / 4}
        lines.append(
            at | {"loss": 3 - step / 30 + step % 4 / 9, "grad_norm": 1.5, "lr": 1e-3, "tokens_per_second": 32.0}
        )
        lines[-1]["memory_mb"] = 100.0 + step
    for i, loss in enumerate(losses):
        step = steps * i // max(len(losses) - 1, 1)
        at = {"step": step, "tokens": step * tokens, "seconds": step / 4}
        lines.append(at | {"val_loss": loss, "val_perplexity": float(np.exp(loss)), "val_bits_per_byte": loss * 1.5})
    if lines:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def write_samples(run: RunDirectory, *texts: str) -> None:
    (run.path / "samples").mkdir()
    for i, written in enumerate(texts):
        (run.path / "samples" / f"step-{20 * i:06d}.txt").write_text(written, encoding="utf-8")


class Elements(HTMLParser):
    """Collects what a browser would see: elements, their attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def outside(page: str) -> list[str]:
    """What would make a browser ask for something else than the page."""
    links = [v for n, v in Elements(page).attributes if n in ("src", "srcset", "href", "xlink:href", "data", "action")]
    return [v for v in links if not v.startswith("#")] + re.findall(r"@import[^;]*|url\((?!#)[^)]*\)", page)


def test_the_page_says_what_the_run_did(tmp_path: Path) -> None:
    run = make(tmp_path / "oak")
    write_samples(run, "first words", "middle words", "last words")
    path = write_report(run)
    assert path == tmp_path / "oak" / "report.html"
    elements = Elements(path.read_text(encoding="utf-8"))
    said = " ".join(elements.text.split())
    assert "Best validation loss 1.5000 nats a token, at step 40" in said
    assert "Perplexity 4.48" in said
    assert "Bits per byte 2.250" in said
    assert f"Parameters {parameter_count(run.config.model):,}" in said
    assert "Training time 10 s" in said
    assert "Tokens a second 32 " in said  # 40 steps of 8 tokens in 10 s
    assert "Peak memory 140 MiB" in said
    assert "All 40 steps done" in said
    assert "--resume" not in said
    assert f"bonsai sample {run.path}" in said.replace(" - ", "-")
    assert elements.tags.count("svg") == 6  # the loss wide and narrow, time, learning rate, gradient, throughput
    assert said.index("first words") < said.index("The one between") < said.index("middle") < said.index("last words")
    assert elements.tags.count("details") == 1
    drawings = re.findall(r'aria-label="([^"]+)"(.*?)</svg>', path.read_text(encoding="utf-8"), re.DOTALL)
    faint = {label: "opacity: 0.4;" in svg for label, svg in drawings}
    assert faint["Training and validation loss against steps"]
    assert not faint["Learning rate against steps"]  # an exact schedule is never smoothed


def test_every_setting_is_on_the_page_and_those_that_are_not_default_stand_out(tmp_path: Path) -> None:
    page = write_report(make(tmp_path / "oak", mlp={"kind": "swiglu", "hidden": 24})).read_text(encoding="utf-8")
    assert re.search(r'class="set"><th scope="row" title="[^"]+">mlp.kind</th><td>swiglu', page)
    assert re.search(r'class="set"><th scope="row" title="[^"]+">mlp.hidden</th><td>24', page)
    assert re.search(r'<tr><th scope="row" title="[^"]+">norm.eps</th><td>1e-05', page)
    assert re.search(r'<tr><th scope="row" title="[^"]+">schedule.warmup</th><td>100', page)
    assert re.search(r'<tr><th scope="row" title="[^"]+">seed</th><td>1337', page)


def test_the_same_run_gives_the_same_bytes_and_another_run_others(tmp_path: Path) -> None:
    run = make(tmp_path / "oak")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    other = write_report(make(tmp_path / "ash", losses=(3.0, 2.0, 1.4))).read_bytes()
    assert other.replace(b"ash", b"oak") != first


def test_what_comes_from_files_is_never_markup(tmp_path: Path) -> None:
    run = make(tmp_path / "<b>oak")
    write_samples(run, SCRIPT, 'a "quoted" \x00\x1b[31m sample')
    environment = json.loads((run.path / "environment.json").read_text()) | {SCRIPT: "\ud800 alone"}
    (run.path / "environment.json").write_text(json.dumps(environment))
    for path in (write_report(run), write_comparison([run], tmp_path / "c.html")):
        elements = Elements(path.read_text(encoding="utf-8"))
        assert "script" not in elements.tags
        assert "<b>oak" in elements.text
    assert SCRIPT in Elements(write_report(run).read_text(encoding="utf-8")).text
    assert "\x00" not in write_report(run).read_text(encoding="utf-8")


def test_the_pages_need_nothing_from_outside(tmp_path: Path) -> None:
    run = make(tmp_path / "oak")
    for path in (write_report(run), write_comparison([run, make(tmp_path / "elm")], tmp_path / "c.html")):
        page = path.read_text(encoding="utf-8")
        assert outside(page) == []
        assert "http://" not in page
        assert "https://" not in page
        assert "script" not in Elements(page).tags
        assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


@pytest.mark.parametrize(
    "bad", ['<img src="x.png">', '<link href="https://a.b/c.css">', "<style>@import 'x';</style>", "<p style='url(x)'>"]
)
def test_the_check_for_outside_resources_sees_them(bad: str) -> None:
    assert outside(bad)


def test_a_run_without_metrics_says_so(tmp_path: Path) -> None:
    run = make(tmp_path / "seed", losses=(), steps=0)
    said = Elements(write_report(run).read_text(encoding="utf-8")).text
    assert "No metrics yet" in said
    assert "This run has no metrics" in said
    page = Elements(write_comparison([run], tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "None of them has been evaluated yet." in page.text
    assert "svg" not in page.tags
    header, [row] = comparison([run])
    assert dict(zip(header, row, strict=True))["best loss"] == "–"


def test_a_killed_run_with_a_torn_line_and_a_nan_is_shown_as_far_as_it_went(tmp_path: Path) -> None:
    run = make(tmp_path / "stump", steps=20)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 22, "tokens": 176, "seconds": 5.5, "loss": NaN, "grad_norm": Infinity}\n{"step": 24, "lo')
    (run.path / "environment.json").unlink()
    said = Elements(write_report(run).read_text(encoding="utf-8")).text
    assert "22 of 40 steps so far" in said
    assert "--resume" in said
    losses = read_history(run).training("loss")[1]  # a NaN would spoil the smoothed curve from there on
    assert losses.size == 20
    assert np.isfinite(losses).all()
    header, [row] = comparison([run])
    assert dict(zip(header, row, strict=True))["steps"] == "22/40"


def test_a_toy_shows_its_exact_share(tmp_path: Path) -> None:
    run = make(tmp_path / "sort", losses=())
    line = {"step": 40, "tokens": 320, "seconds": 10.0, "val_loss": 0.0, "val_perplexity": 1.0, "val_exact": 0.9991}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    said = " ".join(Elements(write_report(run).read_text(encoding="utf-8")).text.split())
    assert "Exact 99.91%" in said
    assert "Bits per byte" not in said
    header, [row] = comparison([run])
    assert dict(zip(header, row, strict=True))["exact"] == "99.91%"
    assert "bits/byte" not in header


def test_the_table_and_the_page_of_a_comparison_agree(tmp_path: Path) -> None:
    runs = [make(tmp_path / "oak"), make(tmp_path / "elm", losses=(3.0, 1.0), mlp={"kind": "swiglu"})]
    header, rows = comparison(runs)
    assert header == ["run", "parameters", "best loss", "bits/byte", "perplexity", "steps", "seconds", "tokens/s"]
    assert rows[0][:1] + rows[0][2:] == ["oak", "1.5000", "2.250", "4.48", "40", "10.0", "32"]
    assert rows[1][2] == "1.0000"
    page = write_comparison(runs, tmp_path / "new" / "c.html").read_text(encoding="utf-8")
    for row in rows:
        assert "".join(f"<td>{cell}</td>" for cell in row[1:]) in page
    assert '<th scope="row">model.mlp.kind</th><td>gelu</td><td>swiglu</td>' in page
    assert "model.n_layer" not in page
    assert "elm, 0.5000 nats below oak" in page
    assert page.count("<svg") == 2
    assert write_comparison(runs, tmp_path / "new" / "c.html").read_text(encoding="utf-8") == page


def test_runs_of_unequal_steps_are_laid_over_each_other_by_tokens_as_well(tmp_path: Path) -> None:
    runs = [make(tmp_path / "oak"), make(tmp_path / "elm", tokens=16)]
    assert "Against tokens" in write_comparison(runs, tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Against tokens" not in write_comparison(runs[:1], tmp_path / "c.html").read_text(encoding="utf-8")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make(tmp_path / "x" / "oak"), make(tmp_path / "y" / "oak"), make(tmp_path / "elm")]
    assert [row[0] for row in comparison(runs)[1]] == ["x/oak", "y/oak", "elm"]
    assert [row[0] for row in comparison([runs[0], runs[0]])[1]] == ["oak (1)", "oak (2)"]
    assert comparison([])[1] == []


def test_a_page_that_cannot_be_written_is_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        write_comparison([make(tmp_path / "oak")], tmp_path / "file" / "c.html")


def test_smoothing_is_a_centred_mean_that_does_not_lag() -> None:
    x = np.arange(60.0)
    y = np.where(x % 2 == 0, 1.0, 2.0)
    _, calm = smooth((x, y), share=0.05)  # reach: 60 * 0.05 / 2, rounded to even, is 2
    assert calm[0] == y[0]
    np.testing.assert_allclose(calm[30], (1 + 2 + 1 + 2 + 1) / 5)
    np.testing.assert_allclose(calm[-1], (2 + 1 + 2) / 3)
    np.testing.assert_allclose(smooth((x, x))[1][:-2], x[:-2], atol=1e-12)
    assert len(smoothed((x, y), 0)) == 2
    assert len(smoothed((x[:9], y[:9]), 0)) == 1


def test_a_long_curve_keeps_its_spike_and_not_its_size() -> None:
    x = np.arange(50_000.0)
    y = 2 + np.sin(x * 1e4) / 100
    calm = chart([Curve(series=(x, y), colour=0)], name="n", label="l", x_label="x")
    y[31_234] = 90.0
    spiked = chart([Curve(series=(x, y), colour=0)], name="n", label="l", x_label="x")
    assert len(calm) < 60_000
    assert calm != spiked
    assert ">50<" in spiked  # the axis reaches the spike


def test_a_users_matplotlib_settings_do_not_change_a_chart() -> None:
    import matplotlib

    curve = Curve(series=(np.arange(5.0), np.arange(5.0) + 1), colour=9, best=True)
    plain = chart([curve], name="n", label='a "label"', x_label="x")
    with matplotlib.rc_context({"xtick.labelsize": 30, "font.size": 30, "svg.fonttype": "path"}):
        assert chart([curve], name="n", label='a "label"', x_label="x") == plain
        assert matplotlib.rcParams["font.size"] == 30
    assert "var(--c1)" in plain
    assert "currentColor" in plain
    assert "#0102" not in plain


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import sys, bonsaigpt.report; print([m for m in ('matplotlib', 'torch', 'jax') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
