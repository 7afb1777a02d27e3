"""The study of the cache: its statistics, what it calls best, and its search."""

from __future__ import annotations

import csv
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.config import KVConfig
from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.engines import load_engine
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv import cut, read_windows
from bonsaigpt.measure.statistics import bootstrap
from bonsaigpt.study.kv import OWN, Bench, KVPoint, Reference, Subject, frontier, policies, variant_policies
from bonsaigpt.study.kv_page import KVStudy, kv_table, write_kv
from bonsaigpt.study.kv_search import search
from bonsaigpt.study.kv_seen import kept, to_see, to_write, written
from bonsaigpt.study.kv_seen_page import kept_section, written_section
from bonsaigpt.torch_engine.kv.cache import PolicyCache
from tests.torch_engine.decoders import model_of
from tests.torch_engine.variants import variant

MODEL = model_of("modern", block_size=8)
BASE = Subject(label="runs/base", model=MODEL, config=MODEL.config)
IDS = np.random.default_rng(0).integers(0, 17, 400)


@pytest.fixture(scope="module")
def bench() -> Bench:
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    bench = Bench(engine, BASE, cut(IDS, 6, 40), chunk=1)
    bench.refer(windows=True, advance=lambda *_: None)
    return bench


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Of noise that neighbours share, which single tokens as draws would take for independent."""
    rng = np.random.default_rng(1)
    covered = narrow = 0
    for _ in range(100):
        noise = np.repeat(rng.normal(size=(16, 32)), 8, axis=1)
        low, high = bootstrap(noise, block=32, draws=300)
        covered += low <= 0 <= high
        low, high = bootstrap(noise, block=1, draws=100)
        narrow += low <= 0 <= high
    assert covered >= 88
    assert narrow < 70


def test_an_exact_policy_adds_nothing_and_a_coarse_one_does(bench: Bench) -> None:
    assert len(bench.references) == 3
    assert bench.best.loss == min(r.loss for r in bench.references)
    assert bench.tokens == 6 * 32
    best = {"full": "everything", "window(8)": "window(8) through"}
    same = next((p for p, name in best.items() if bench.best.name.startswith(name)), None)
    if same is not None:
        exact = bench.measure(read_policy(same))
        assert abs(exact.added) < 1e-6
        assert exact.agree == 1.0
    coarse = bench.measure(read_policy("window(8), sign"))
    assert coarse.kl > 0.01
    assert coarse.low <= coarse.added <= coarse.high
    assert coarse.factor == pytest.approx(
        8 * 16 * 96 / (7 * 12 * (8 + 32) + 16 * 96), rel=1e-6
    )  # 7 tokens held, 3 layers of 2 heads of 8 keys and values; one at 16 bits


def point(bits: float, added: float) -> KVPoint:
    return KVPoint(model="", policy="", bits=bits, factor=1, loss=0, added=added, low=0, high=0, kl=0, kl_99=0, agree=1,
                   by_position=[], slope=0, slope_margin=0)  # fmt: skip


def test_the_frontier_is_what_nothing_beats() -> None:
    points = [point(10, 0.1), point(20, 0.05), point(20, 0.06), point(30, 0.05), point(5, 0.5), point(30, 0.0)]
    assert frontier(points) == [True, True, False, False, True, True]


@pytest.mark.parametrize("name", ["rope", "grouped queries", "no position"])
def test_every_default_policy_fits(name: str) -> None:
    for block in (8, 24, 64, 256):
        config = variant(name, block_size=block)
        found = policies(config)
        assert len(found) == len(set(found)) > 25
        for words in found:
            PolicyCache(config, read_policy(words))


def test_the_search_goes_down_to_its_limit_and_no_further() -> None:
    """Where keys may be coarse and values not, and all windows are alike, it finds just that."""
    config = variant("rope", block_size=16)

    def quick(kv: KVConfig) -> tuple[float, float]:
        added = bits = 0.0
        for layer in range(config.n_layer):
            policy = kv.of(layer)
            formats = policy.formats
            if "x" in formats:
                return 9.9, 9e9
            width = {"bf16": 16, "int8": 8, "int6": 6, "int5": 5, "int4": 4, "int3": 3, "int2": 2}
            k, v = width[formats["k"].kind], width[formats["v"].kind]
            window = policy.select.window  # type: ignore[union-attr]
            bits += window * (k + v) / 16
            added += (16 - v) ** 2 * 1e-3 + (16 - window) * 1e-2 * (layer == 1) + (16 - k) * 1e-6
        return added, bits

    found = search(config, quick, max_loss=0.02)
    assert found.added <= 0.02
    assert all(found.kv.of(i).formats["k"].kind == "int2" for i in range(3))
    assert all(found.kv.of(i).formats["v"].kind == "bf16" for i in range(3))
    windows = [found.kv.of(i).select.window for i in range(3)]  # type: ignore[union-attr]
    assert windows == [2, 16, 2]
    within = search(config, quick, max_bits=20.0)
    assert within.bits <= 20.0
    assert within.added > found.added or within.bits >= found.bits


@pytest.mark.parametrize("heads", [4, 1])
def test_the_search_holds_the_layers_input_where_that_is_less(heads: int) -> None:
    """Of 4 heads of 8 the input is half of keys and values, of 1 head twice as much; a loss that only few bits add."""
    config = variant("rope", block_size=16, attention={"n_kv_head": heads, "share_kv": 2})
    asked: set[int] = set()

    def quick(kv: KVConfig) -> tuple[float, float]:
        bits = added = 0.0
        for layer in config.kv_layers:
            policy = kv.held(config, layer)
            width = {"bf16": 16, "int8": 8, "int6": 6, "int5": 5, "int4": 4, "int3": 3, "int2": 2}
            asked.add(policy.select.window)  # type: ignore[union-attr]
            for name, form in policy.formats.items():
                numbers = config.n_embd if name == "x" else 8 * heads
                bits += policy.select.window * numbers * width[form.kind]  # type: ignore[union-attr]
                added += 0.02 * (width[form.kind] < 4) + 0.003 * (16 - policy.select.window)  # type: ignore[union-attr]
        return added, bits

    found = search(config, quick, max_loss=0.03)
    assert found.added <= 0.03
    assert [("x" in found.kv.of(layer).formats) for layer in config.kv_layers] == [heads == 4] * 2
    assert found.bits < (1 / 6 if heads == 4 else 1 / 3) * 2 * 16 * 16 * 2 * 8 * heads
    assert asked >= {16, 14, 12}


def test_the_page_the_table_and_their_commands(bench: Bench, tmp_path: Path) -> None:
    points = [bench.measure(read_policy(words)) for words in ("window(8), int8", "window(4)+random(2), bf16")]
    points += [replace(points[0], model="runs/it's@9", high=0.0), replace(points[0], model="runs/lean", policy=OWN)]
    study = KVStudy(label="runs/base", block=8, tokens=bench.tokens, chunk=1, references=bench.references,
                    best=bench.best, points=points)  # fmt: skip
    page, image, table = write_kv(study, tmp_path)
    assert image.read_bytes().startswith(b"\x89PNG")
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html
    assert "<script" not in html
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert shlex.split(rows.pop()["command"]) == ["bonsai", "eval", "runs/lean"]
    assert "+0.01 nats, the interval included: by training, " in study.verdict
    for row, p in zip(rows, points, strict=False):
        words = shlex.split(row["command"])
        assert words[:4] == ["bonsai", "eval", p.model.removesuffix("@9"), "--kv"]
        assert read_policy(words[4]) == replace_chunk(p.policy)
        assert float(row["added"]) == pytest.approx(p.added, rel=1e-4)
    assert write_kv(replace(study, points=points[:1]), tmp_path)


def test_the_formats_of_eight_bits_are_ranked_with_their_intervals() -> None:
    points = [
        replace(point(9, 0.001), model="m", policy=f"window(8), {form}", kl=kl, low=low, high=0.004)
        for form, kl, low in (("e4m3", 0.0003, -0.001), ("int8", 0.00001, 0.0), ("e5m2", 0.001, 0.002))
    ]
    best = Reference(name="everything", loss=1.0, by_position=[])
    study = KVStudy(label="m", block=8, tokens=9, chunk=1, references=[best], best=best, points=points)
    ranked = [study.verdict.index(form) for form in ("int8", "e4m3", "e5m2")]
    assert ranked == sorted(ranked)
    assert "e4m3 (KL 0.00030; -0.0010 to +0.0040 nats)" in study.verdict


def replace_chunk(policy: str) -> KVConfig:
    return read_policy(policy).model_copy(update={"chunk": 1})


# ------------------------------------------------------------------ variants


def subject(name: str, label: str, trained: str | None = None, **changes: object) -> Subject:
    model = model_of(name, block_size=8, **changes)
    kv = None if trained is None else read_policy(trained)
    return Subject(label=label, model=model, config=model.config, trained=kv)


def test_variants_are_held_against_the_same_reference_and_the_same_bits() -> None:
    """Bits by hand: of the base's 3 layers of 2 heads of 8; the variant shares one head between two layers; and a model
    that keeps as much as the base, trained without a policy, is a reference itself."""
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    lean = subject("modern", "runs/lean", "window(4), int8", attention={"n_kv_head": 1, "share_kv": 2})
    twin = subject("modern", "runs/twin")
    with torch.no_grad():  # it knows the text better than any of the others, by chance or not at all
        twin.model.lm_head.weight *= 0.0
    bench = Bench(engine, BASE, cut(IDS, 3, 24), chunk=1, variants=[lean, twin])
    bench.refer(windows=False, advance=lambda *_: None)
    assert [r.name.split(": ")[0] for r in bench.references if ": " in r.name] == ["runs/twin", "runs/twin"]
    assert bench.best.name.startswith("runs/twin")
    points = [bench.measure(kv, one) for one in (lean, twin) for kv in variant_policies(one)[:2]]
    assert [p.policy for p in points[:2]] == ["window(4), int8", "window(8), bf16"]
    whole = 8 * 16 * 96
    assert points[0].factor == pytest.approx(whole / (3 * 2 * 2 * (64 + 16) + 2 * 16 * 16))
    assert points[0].bits * 8 == pytest.approx(3 * 2 * 2 * (64 + 16) + 2 * 16 * 16)
    assert abs(points[2].added) < 1e-6  # every token is as likely as any other
    assert all(p.added == pytest.approx(p.loss - bench.best.loss, abs=1e-9) for p in points)
    header, rows = kv_table(points)
    assert header[0] == "model"
    assert {row[0] for row in rows} == {"runs/lean", "runs/twin"}


def test_attention_that_takes_no_policy_is_read_with_its_own_cache() -> None:
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    for name, bits in [("latent, yarn", 8 * 3 * (12 + 6) * 16), ("linear", 3 * 4 * 8 * 9 * 16)]:
        one = subject(name, f"runs/{name}")
        bench = Bench(engine, BASE, cut(IDS, 2, 12), chunk=1, variants=[one])
        bench.refer(windows=False, advance=lambda *_: None)
        assert variant_policies(one) == [None]
        point = bench.measure(None, one)
        assert (point.policy, point.bits * 8) == (OWN, pytest.approx(bits))
        anew = read_windows(engine, one.model, one.config, cut(IDS, 2, 12), first=8)
        assert point.loss == pytest.approx(anew.losses_RT[:, 8:].mean())


# ------------------------------------------------------------------ to look at


def test_maps_show_what_is_held_and_texts_where_they_part(bench: Bench, tmp_path: Path) -> None:
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    words = ["window(8), bf16", "sinks(1)+window(2)+h2o(3), bf16", "window(2)+random(3), bf16", "window(2), sign"]
    points = [replace(bench.measure(read_policy(w)), bits=90.0 - i) for i, w in enumerate(words)]
    points = [replace(p, added=float(i)) for i, p in enumerate(points)]
    assert [kv.policy.select.kind for kv in to_see(points, "runs/base")] == ["h2o", "random"]
    assert to_see(points, "another") == []
    maps = [kept(engine, BASE, kv, IDS[:12]) for kv in to_see(points, "runs/base")]
    held = maps[0].held[1, 0]
    assert len(maps[0].held) == 3 * 2
    assert held[:, 0].all()  # the sink
    assert held.diagonal().all()
    assert (held.sum(1) == np.minimum(np.arange(1, 13), 5)).all()
    assert not np.triu(held, 1).any()
    front = to_write(points, "runs/base")
    assert [p.policy for p in front] == words
    tokenizer = CharTokenizer("abcdefghijklmnopq")
    texts = written(engine, BASE, tokenizer, [front[0], front[-1]], IDS[:8], tokens=60)
    exact = texts[0].text
    assert len(exact) == 60
    assert all(one.text[: one.same] == exact[: one.same] for one in texts)
    assert texts[2].same < 60
    assert texts[2].text[texts[2].same] != exact[texts[2].same]
    section = written_section(texts)
    assert f"the same for {texts[2].same:,} characters" in section
    html = kept_section(maps, tmp_path / "kept.png")
    assert "Held after each token" in html
    assert "<image" not in html  # the page's own policy lets no image in
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")
