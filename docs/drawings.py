"""Drawings of the handbook, made by the package's own code or from a table of the page that they stand on.

    python docs/drawings.py                   # writes all of them into docs/images
    python docs/drawings.py sampling kv       # some

A test makes each again and compares. What was measured is not drawn from memory: ``blocks``, ``decoding``,
``optimizers``, ``studies`` and ``tokenizers`` read the page's tables, ``health`` what two short runs wrote down
(docs/recorded/drawings/health.json, with their commands).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["DRAWINGS", "drawn", "table_of"]

DOCS = Path(__file__).resolve().parent
COLOURS = ("#2c6e4d", "#c2571a", "#3b6fb6", "#8a5a9e", "#8c8c22")
FAINT = "#dfe5dc"

Cells = Sequence[str]


def table_of(page: str, first: str, *, header: bool = False, nth: int = 0) -> list[Cells]:
    """Rows of the page's table whose header begins with a cell.

    Args:
        header: with the header's cells as the first row.
        nth: of several such tables.

    Raises:
        ValueError: there is no such table.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    begin = rf"{re.escape(first)} " if first else ""
    found = re.findall(rf"^(\| {begin}\|.*\n)\|[-| ]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    if len(found) <= nth:
        raise ValueError(f"{page} has no table that begins with '{first}'")
    lines = [*([found[nth][0]] if header else []), *found[nth][1].splitlines()]
    return [[cell.strip(" *`") for cell in line.strip().strip("|").split("|")] for line in lines]


def sampling(figure: Figure) -> None:
    """One distribution, and what each rule leaves of it."""
    from bonsaigpt.sampling import Chooser, Sampling

    own = np.array([26, 17, 15, 11, 9, 6, 5, 4, 3, 2, 1.3, 0.7]) / 100  # made to be seen
    logits = np.log(own)
    rules: list[tuple[str, dict[str, Any]]] = [
        ("the model's own", {"temperature": 1.0}),
        ("temperature 0.6", {"temperature": 0.6}),
        ("temperature 1.5", {"temperature": 1.5}),
        ("top-k 4", {"temperature": 1.0, "top_k": 4}),
        ("top-p 0.7", {"temperature": 1.0, "top_p": 0.7}),
        ("min-p 0.2", {"temperature": 1.0, "min_p": 0.2}),
        ("typical 0.5", {"temperature": 1.0, "typical_p": 0.5}),
        ("1.5, then min-p 0.2", {"temperature": 1.5, "min_p": 0.2}),
    ]
    for axes, (title, values) in zip(figure.subplots(2, 4, sharex=True, sharey=True).flat, rules, strict=True):
        left = np.exp(Chooser(Sampling(**values), prompt=[], vocab_size=len(logits)).distribution(logits))
        axes.bar(range(len(own)), own, color=FAINT)
        axes.bar(range(len(own)), left, color=COLOURS[0], width=0.5)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xticks([])
        bare(axes)
    figure.supxlabel("twelve tokens, by their probability; pale: the model's own", fontsize=9)


def kv(figure: Figure) -> None:
    """Which tokens are still held while a text of 48 is read."""
    from bonsaigpt.config import validate
    from bonsaigpt.engines import load_engine
    from bonsaigpt.kv import read_policy
    from bonsaigpt.torch_engine.kv.decoder import PolicyReader
    from bonsaigpt.torch_engine.model import build

    engine = load_engine("torch", device="cpu", threads=1, workers=1)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 32, "block_size": 64, "vocab_size": 24, "position": {"kind": "rope"}}
    model = build(validate({"model": sizes}, origin="").model, seed=4).eval()
    tokens = np.random.default_rng(0).integers(0, 24, 48)
    policies = ["window(16)", "sinks(3)+window(13)", "window(6)+h2o(10)", "window(6)+tova(10)"]
    for axes, words in zip(figure.subplots(1, 4, sharey=True), policies, strict=True):
        reader = PolicyReader(model, read_policy(words), placement=engine.placement)
        held_TT = np.zeros((len(tokens), len(tokens)))
        for t, token in enumerate(tokens):
            reader.read(np.array([[token]]))
            held_TT[t, reader.positions(0)[0, 0]] = 1
        picture(axes, held_TT, [FAINT, COLOURS[0]])
        axes.set_title(words, fontsize=9, loc="left")
        axes.set_xlabel("position of a token", fontsize=9)
    figure.axes[0].set_ylabel("tokens read so far", fontsize=9)


def tokenizers(figure: Figure) -> None:
    """Bytes a token, of each text, under each vocabulary: the page's table."""
    rows = [row for row in table_of("tokenizers.md", "tokenizer") if "split" not in row[0]]
    axes = figure.subplots()
    for number, language in enumerate(("English", "Python", "Czech", "Chinese")):
        places = np.arange(len(rows)) + 0.2 * (number - 1.5)
        values = [float(row[1 + number]) for row in rows]
        axes.barh(places, values, height=0.18, color=COLOURS[number], label=language)
    axes.set_yticks(range(len(rows)), [row[0].replace("`", "") for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("bytes a token")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    bare(axes)


def optimizers(figure: Figure) -> None:
    """What each change adds to the loss, with its interval: the page's table."""
    rows = [row for row in table_of("optimizers.md", "Variant") if "±" in row[2]]
    found = sorted((*map(float, row[2].split(" ± ")), row[0]) for row in rows)
    axes = figure.subplots()
    for place, (added, margin, _) in enumerate(found):
        colour = COLOURS[1] if added - margin > 0 else COLOURS[0] if added + margin < 0 else "#777777"
        axes.errorbar(added, place, xerr=margin, fmt="o", markersize=3, color=colour, linewidth=1)
    axes.set_yticks(range(len(found)), [name for *_, name in found], fontsize=7)
    axes.axvline(0, color="#777777", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=0.02)
    ticks = [-0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4]
    axes.set_xticks(ticks, [f"{x:+g}" if x else "0" for x in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("nats beside the base: the further left, the better; lines are 95 % intervals", fontsize=9)
    bare(axes)


def blocks(figure: Figure) -> None:
    """What each variant does to the loss: the page's tables."""
    tables = [[row for row in table_of("blocks.md", "variant", nth=n) if row[3]] for n in (0, 1)]
    heights = [len(rows) for rows in tables]
    for axes, rows in zip(figure.subplots(2, 1, sharex=True, height_ratios=heights), tables, strict=True):
        values = [float(row[3].split()[0]) for row in rows]
        colours = [COLOURS[0] if value < 0 else COLOURS[1] for value in values]
        axes.barh(range(len(rows)), values, height=0.6, color=colours)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.invert_yaxis()
        axes.axvline(0, color="#777777", linewidth=0.8)
        bare(axes)
    figure.axes[-1].set_xlabel("nats against GPT-2's blocks after 400 steps: the further left, the better", fontsize=9)


def decoding(figure: Figure) -> None:
    """Tokens a second of ours and of others, at two sizes: the page's table."""
    rows = table_of("decoding.md", "", header=True)
    for axes, column in zip(figure.subplots(1, 2, sharey=True), (1, 3), strict=True):
        names, values = zip(*((row[0], float(row[column].replace(",", ""))) for row in rows[1:]), strict=True)
        axes.barh(
            range(len(names)), values, height=0.6, color=[COLOURS[0] if "ours" in n else "#999999" for n in names]
        )
        axes.set_yticks(range(len(names)), names)
        axes.set_xscale("log")
        ticks = [t for t in (10, 100, 1000, 10000) if t < 2 * max(values)]
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()
        axes.set_title(rows[0][column], fontsize=9, loc="left")
        bare(axes)
    figure.axes[0].invert_yaxis()
    figure.supxlabel("tokens a second", fontsize=9)


def generation(figure: Figure) -> None:
    """Which request has which row of a session, step by step: as they come, and four by four."""
    from bonsaigpt.config import validate
    from bonsaigpt.engines import load_engine
    from bonsaigpt.generate import Request, Session

    engine = load_engine("torch", device="cpu", threads=1, workers=1)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 64, "vocab_size": 16, "position": {"kind": "rope"}}
    config = validate({"model": sizes}, origin="").model
    lengths = [14, 5, 9, 3, 7, 12, 4, 6, 10, 5, 3, 8]

    def told(waves: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
        """At each step (row, request) of those at work."""
        from bonsaigpt.torch_engine.model import build

        decoder, steps = engine.decoder(build(config, seed=0).eval(), rows=4), []
        session, rows, original = Session(decoder, vocab_size=16), {}, decoder.prefill

        def prefill(row: int, tokens: np.ndarray) -> np.ndarray:
            rows[int(tokens[0])] = row
            return original(row, tokens)

        decoder.prefill = prefill  # type: ignore[method-assign]
        for wave in waves:
            asked = {session.add(Request(prompt=[n], max_tokens=lengths[n])): n for n in wave}
            while session.busy:
                steps.append(
                    [(rows[asked[e.request]], asked[e.request]) for e in session.step() if e.token is not None]
                )
        return steps

    every = range(len(lengths))
    ways = {
        "a row that ends is free": [every],
        "in fours, each waits for the longest": [every[:4], every[4:8], every[8:]],
    }
    for axes, (title, waves) in zip(figure.subplots(2, 1, sharex=True), ways.items(), strict=True):
        steps, seen = told(waves), {}
        for step, at_work in enumerate(steps):
            for row, request in at_work:
                seen.setdefault(request, (row, step, lengths[request]))
        for request, (row, begin, length) in seen.items():
            axes.broken_barh([(begin + 0.04, length - 0.08)], (row + 0.08, 0.84), facecolor=COLOURS[request % 5])
            axes.text(begin + 0.3, row + 0.54, str(request + 1), va="center", color="white", fontsize=8)
        axes.set_ylim(4, 0)
        axes.set_yticks([0.5, 1.5, 2.5, 3.5], ["1", "2", "3", "4"])
        axes.set_ylabel("row")
        axes.set_title(f"{title}: {len(steps)} steps", fontsize=9, loc="left")
        bare(axes)
    figure.axes[-1].set_xlabel("step: a token for every row at work")


def studies(figure: Figure) -> None:
    """Loss over the learning rate, with its interval: the page's two tables."""
    for axes, first in zip(
        figure.subplots(1, 2), ("`shakespeare-char`, 300", "`shakespeare-char-fast` (Muon)"), strict=True
    ):
        text = (DOCS / "studies.md").read_text(encoding="utf-8")
        [name] = re.findall(rf"^\| ({re.escape(first)}[^|]*) \|", text, flags=re.MULTILINE)
        rates, losses = table_of("studies.md", name, header=True)
        x = [float(rate.removeprefix("x")) for rate in rates[1:]]
        y, margin = zip(*(map(float, loss.split(" ± ")) for loss in losses[1:]), strict=True)
        axes.errorbar(x, y, yerr=margin, fmt="o-", markersize=4, color=COLOURS[0], linewidth=1, capsize=2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, rates[1:])
        axes.minorticks_off()
        axes.set_title(name.replace("`", "").split(",")[0], fontsize=9, loc="left")
        axes.set_xlabel("of the recipe's peak rates")
        bare(axes)
    figure.axes[0].set_ylabel("loss, nats")


def speed(figure: Figure) -> None:
    """Bytes of logits that a pass holds, whole and in chunks."""
    from bonsaigpt.torch_engine.loss import WHOLE

    tokens = 2 ** np.arange(6, 17)
    axes = figure.subplots()
    for colour, vocabulary in zip(COLOURS, (65, 4096, 50257), strict=False):
        whole = tokens * vocabulary
        axes.loglog(tokens, whole * 4 / 2**20, color=colour, linestyle=":")
        axes.loglog(tokens, np.minimum(whole, WHOLE) * 4 / 2**20, color=colour, label=f"{vocabulary:,} tokens")
    axes.set_xlabel("tokens in a pass")
    axes.set_ylabel("MiB of logits in fp32")
    axes.set_xticks([64, 256, 1024, 4096, 16384, 65536], ["64", "256", "1,024", "4,096", "16,384", "65,536"])
    axes.set_yticks([0.1, 1, 10, 100, 1000, 10000], ["0.1", "1", "10", "100", "1,000", "10,000"])
    axes.minorticks_off()
    axes.legend(frameon=False, title="vocabulary; dotted: all at once")
    bare(axes)


def distributed(figure: Figure) -> None:
    """Which process computes which row, while the number of processes changes."""
    from bonsaigpt.data.batches import Batch

    rows, phases = 10, [(2, 6), (1, 5), (4, 6)]
    begin = 0
    axes = figure.subplots()
    for size, steps in phases:
        numbers_BT = np.arange(rows)[:, None]
        for rank in range(size):
            mine = Batch(tokens_BT=numbers_BT, targets_BT=numbers_BT, count=rows).part(rank, size).tokens_BT[:, 0]
            for row in mine:
                axes.broken_barh(
                    [(begin + s + 0.06, 0.88) for s in range(steps)], (row + 0.08, 0.84), facecolor=COLOURS[rank]
                )
        axes.text(begin + steps / 2, -0.4, f"{size} process" + "es" * (size > 1), ha="center", va="bottom", fontsize=9)
        begin += steps
        if begin < sum(steps for _, steps in phases):
            axes.axvline(begin, color="#444444", linewidth=1.2)
    axes.set_ylim(rows, -1.4)
    axes.set_xlim(0, begin)
    axes.set_xlabel("step; at each line the run was stopped and went on")
    axes.set_ylabel("row of the batch")
    axes.set_yticks(np.arange(rows) + 0.5, [str(i) for i in range(rows)])
    bare(axes)


def finetuning(figure: Figure) -> None:
    """Rows as they are trained on: whole examples side by side, and what the loss counts."""
    from bonsaigpt.config import validate
    from bonsaigpt.data.batches import IGNORE
    from bonsaigpt.data.prepare import open_source

    asked = [("2+3=", "5"), ("red + blue = ", "violet"), ("cold, colder, ", "coldest"), ("a dog, two ", "dogs")]
    asked += [("7*6=", "42"), ("sun is to day as moon is to ", "night"), ("go, went, ", "gone")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in asked), encoding="utf-8")
        data = {"kind": "examples", "path": str(path), "val": str(path)}
        model = {"block_size": 47, "vocab_size": 257}
        config = validate({"data": data, "model": model, "train": {"batch_size": 3}}, origin="")
        source = open_source(config, Path(folder) / "corpora")
        batch = source.batch_at(0)
    axes = figure.subplots()
    for row, (tokens, targets) in enumerate(zip(batch.tokens_BT, batch.targets_BT, strict=True)):
        said = {t + 1 for t in np.flatnonzero(targets != IGNORE)}  # a target is the token after its place
        shown = [*tokens.tolist(), int(targets[-1])]
        for t, token in enumerate(shown):
            if token == IGNORE:
                continue
            end = token >= 256
            filler = end and t not in said and all(x >= 256 for x in shown[t + 1 :] if x != IGNORE)
            if filler and t and shown[t - 1] >= 256:
                continue
            colour = COLOURS[0] if t in said else FAINT
            axes.add_patch(matplotlib.patches.Rectangle((t + 0.04, row + 0.1), 0.92, 0.8, facecolor=colour))
            ink = "white" if t in said else "#333333"
            axes.text(t + 0.5, row + 0.52, "∎" if end else chr(token), ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlim(0, 48)
    axes.set_ylim(len(batch.tokens_BT), 0)
    axes.axis("off")


def context(figure: Figure) -> None:
    """Tokens that a pair of channels takes for a whole turn, stretched fourfold in each way."""
    from bonsaigpt.config import RopePosition
    from bonsaigpt.torch_engine.rope import frequencies

    ways: dict[str, dict[str, Any] | None] = {
        "as it is": None,
        "linear": {"kind": "linear", "factor": 4.0},
        "ntk": {"kind": "ntk", "factor": 4.0},
        "yarn": {"kind": "yarn", "factor": 4.0, "original": 256},
    }
    axes = figure.subplots()
    for colour, (name, scaling) in zip(("#777777", *COLOURS), ways.items(), strict=False):
        position = RopePosition.model_validate({"kind": "rope", **({"scaling": scaling} if scaling else {})})
        turn = 2 * math.pi / frequencies(position, 64).numpy()
        axes.semilogy(range(len(turn)), turn, color=colour, label=name, marker=".", markersize=4)
    for tokens, words in ((256, "the context of training"), (1024, "four times that")):
        axes.axhline(tokens, color="#999999", linewidth=0.8, linestyle=":")
        axes.text(0, tokens * 1.15, f"{tokens:,}: {words}", fontsize=8, color="#555555")
    axes.set_xlabel("pair of channels, of 32")
    axes.set_ylabel("tokens for a whole turn")
    axes.set_yticks([10, 100, 1000, 10000, 100000], ["10", "100", "1,000", "10,000", "100,000"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    bare(axes)


def kronecker(figure: Figure) -> None:
    """A small matrix times a small matrix: a large one, whose blocks are copies; a sum of two has other blocks."""
    rng = np.random.default_rng(6)
    pairs = [(rng.normal(size=(4, 3)), rng.normal(size=(4, 4))) for _ in range(2)]
    terms = [np.kron(a, b) for a, b in pairs]
    shown = [("A, 4 x 3", pairs[0][0]), ("B, 4 x 4", pairs[0][1]), ("A (x) B: 28 values for 192", terms[0])]
    shown.append(("two terms: 56 values", terms[0] + terms[1]))
    for axes, (title, values) in zip(figure.subplots(1, 4, width_ratios=[3, 4, 9, 9]), shown, strict=True):
        most = np.abs(values).max()
        axes.imshow(values, cmap="BrBG", vmin=-most, vmax=most, interpolation="nearest")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        if values.size > 20:
            for x in range(4, 12, 4):
                axes.axvline(x - 0.5, color="white", linewidth=1)
            for y in range(4, 16, 4):
                axes.axhline(y - 0.5, color="white", linewidth=1)


def health(figure: Figure) -> None:
    """Units that were never active, block by block, of two runs that differ in the rate alone."""
    runs = json.loads((DOCS / "recorded" / "drawings" / "health.json").read_text(encoding="utf-8"))
    for axes, run in zip(figure.subplots(2, 1, sharex=True), runs, strict=True):
        dead_LS = np.array(run["dead"], dtype=float).T
        drawn = axes.imshow(
            dead_LS, cmap="Oranges", vmin=0, vmax=1, aspect="auto", interpolation="nearest",
            extent=(run["steps"][0], run["steps"][-1], len(dead_LS) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_title(f"--optim.lr {run['lr']}: loss {run['loss']:.2f} at the end", fontsize=9, loc="left")
        axes.set_yticks(range(len(dead_LS)))
        axes.set_ylabel("block")
    figure.axes[-1].set_xlabel("step")
    bar = figure.colorbar(drawn, ax=figure.axes, shrink=0.8, label="hidden units that were never active")
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])


def bare(axes: Axes) -> None:
    """No frame but the two axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def picture(axes: Axes, values: np.ndarray, colours: list[str]) -> None:
    """A matrix of small whole numbers, each its colour."""
    from matplotlib.colors import ListedColormap

    axes.imshow(values, cmap=ListedColormap(colours), interpolation="nearest")
    axes.tick_params(labelsize=8)


DRAWINGS: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "blocks": (blocks, (7.5, 5.5)),
    "context": (context, (7.0, 3.6)),
    "decoding": (decoding, (8.0, 2.8)),
    "distributed": (distributed, (7.0, 3.0)),
    "finetuning": (finetuning, (9.5, 1.5)),
    "generation": (generation, (8.0, 3.6)),
    "health": (health, (7.0, 3.2)),
    "kronecker": (kronecker, (7.5, 2.6)),
    "kv": (kv, (9.0, 2.7)),
    "optimizers": (optimizers, (7.5, 6.5)),
    "sampling": (sampling, (8.0, 3.4)),
    "speed": (speed, (7.0, 3.2)),
    "studies": (studies, (8.0, 2.8)),
    "tokenizers": (tokenizers, (7.5, 4.6)),
}
"""What draws, and the size in inches, by the name of the page and of the file in docs/images."""


def drawn(name: str) -> str:
    """The drawing as SVG, on white."""
    draw, size = DRAWINGS[name]
    out = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change it
        letters = "path" if name == "finetuning" else "none"  # many single letters are shorter as shared outlines
        settings = {"font.size": 9, "svg.hashsalt": name, "svg.fonttype": letters, "savefig.dpi": 100}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DRAWINGS)}; all if left out")
    for name in parser.parse_args().names or DRAWINGS:
        (DOCS / "images" / f"{name}.svg").write_text(drawn(name), encoding="utf-8")
        print(DOCS / "images" / f"{name}.svg")


if __name__ == "__main__":
    main()
