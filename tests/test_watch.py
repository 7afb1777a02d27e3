"""`bonsai watch`: it tells what runs write, as they write it, and answers for nothing but them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bonsaigpt.cli import main
from bonsaigpt.config import RunConfig, derive, dump_toml
from bonsaigpt.train.callbacks.jsonl import Tail
from bonsaigpt.watch import Follower, make_app
from bonsaigpt.watch.following import find_runs
from bonsaigpt.watch.studies import read_study

LINE = {"step": 10, "tokens": 640, "seconds": 1.0, "loss": 2.5, "lr": 0.001, "skipped": 0}


def make_run(folder: Path, *, steps: int = 100) -> Path:
    """A run that was just made: nothing but its configuration."""
    folder.mkdir(parents=True)
    config = derive(RunConfig(), model={"vocab_size": 10}, train={"steps": steps})
    (folder / "config.toml").write_text(dump_toml(config), encoding="utf-8")
    return folder


def write(run: Path, *lines: dict[str, Any], end: str = "") -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + end)


def told(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["kind"] == kind]


# ------------------------------------------------------------------ reading on


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.read() == ([], False)
    write(tmp_path, {"step": 1}, end='{"step": 2, "lo')
    assert tail.read() == ([{"step": 1}], False)
    write(tmp_path, end='ss": 3}\nnot json\n[1]\n')
    assert tail.read() == ([{"step": 2, "loss": 3}], False)
    assert tail.read() == ([], False)


@pytest.mark.parametrize("more", [0, 5])
def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path, more: int) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    write(tmp_path, {"step": 1}, {"step": 2}, {"step": 3})
    assert len(tail.read()[0]) == 3
    aside = tmp_path / "aside"
    aside.mkdir()
    again = [{"step": i, "loss": 1.5} for i in range(1 + more)]  # shorter, or longer, than what was read
    write(aside, *again)
    (aside / "metrics.jsonl").replace(tmp_path / "metrics.jsonl")
    assert tail.read() == (again, True)
    assert tail.read() == ([], False)


# ------------------------------------------------------------------ what is told


def test_a_run_is_told_from_its_begin_to_its_end(tmp_path: Path) -> None:
    now = 0.0
    follower = Follower(tmp_path, clock=lambda: now)
    assert follower.look() == [{"kind": "studies", "studies": []}]
    run = make_run(tmp_path / "sweep" / "a", steps=20)
    [found, state] = follower.look()
    assert (found["kind"], found["name"], found["steps"]) == ("run", "sweep/a", 20)
    assert state == {"kind": "state", "name": "sweep/a", "state": "waiting"}

    write(run, LINE, {"step": 10, "val_loss": 2.6}, end='{"step": 1')
    now = (run / "metrics.jsonl").stat().st_mtime
    messages = follower.look()
    [lines] = told(messages, "lines")
    assert not lines["anew"]
    assert lines["lines"] == [{k: v for k, v in LINE.items() if k != "skipped"}, {"step": 10, "val_loss": 2.6}]
    assert told(messages, "state")[0]["state"] == "training"
    assert follower.look() == []

    now += 1000
    assert follower.look() == [{"kind": "state", "name": "sweep/a", "state": "silent"}]
    write(run, end='5, "loss": 2.4}\n')
    write(run, {"step": 20, "val_loss": 2.3})
    messages = follower.look()
    assert [line["step"] for line in told(messages, "lines")[0]["lines"]] == [15, 20]
    assert told(messages, "state")[0]["state"] == "done"
    shutil.rmtree(run)
    assert follower.look() == [{"kind": "gone", "name": "sweep/a"}]


def test_what_changed_is_told_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    follower = Follower(tmp_path)
    follower.look()
    (run / "health.jsonl").write_text('{"step": 1}\n')
    assert told(follower.look(), "changed") == [{"kind": "changed", "name": "a", "what": "health"}]
    (run / "studies").mkdir()
    (run / "studies" / "kv.csv").write_text("policy,bits,solved,lost\n")  # of a kind that is unknown: not drawn
    assert not told(follower.look(), "studies")
    (run / "studies" / "kv.csv").write_text("policy,bits_per_token,added,low,high,frontier,command\n")
    messages = follower.look()
    [studies] = told(messages, "studies")
    assert [(s["name"], s["study"]) for s in studies["studies"]] == [("a", "kv")]
    assert follower.look() == []


def test_a_config_that_cannot_be_read_is_a_message(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "config.toml").write_text("[model]\nn_layr = 2\n")
    [found] = told(Follower(tmp_path).look(), "run")
    assert "n_layr" in found["about"]
    assert found["steps"] == 0


def test_of_many_lines_the_evaluations_and_the_last_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    lines = [{"step": i, "loss": 1.0} for i in range(5000)]
    write(run, *lines[:2500], {"step": 2500, "val_loss": 1.0}, *lines[2500:])
    [message] = told(Follower(tmp_path).look(), "lines")
    assert len(message["lines"]) <= 801
    assert message["lines"][-1]["step"] == 4999
    assert sum("val_loss" in line for line in message["lines"]) == 1


def test_runs_are_found_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b", "a", "sweep/x", ".hidden/y", "a/checkpoints/z", "one/two/three/four"):
        make_run(tmp_path / name)
    assert list(find_runs(tmp_path)) == ["a", "b", "sweep/x"]
    assert list(find_runs(tmp_path / "a")) == ["a"]


# ------------------------------------------------------------------ what is answered


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """A folder with a run that has samples and health, and a study."""
    folder = tmp_path_factory.mktemp("runs")
    more = ["--train.steps", "4", "--train.eval_interval", "2", "--train.sample_tokens", "5"]
    more += ["--train.health.interval", "2", "--data.tokenizer.kind", "chars", "--data.path", str(tiny_text)]
    corpora = str(tmp_path_factory.mktemp("corpora"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
        place = ["--name", "<b>a", "--runs", str(folder), "--corpora", corpora]
        assert main(["train", "my-text", *place, *tiny_flags, *more]) == 0
    studies = folder / "<b>a" / "studies"
    studies.mkdir()
    header = (
        "policy,bits_per_token,times_fewer,loss,added,low,high,kl,kl_99,agree,slope,slope_margin,frontier,command\n"
    )
    (studies / "kv.csv").write_text(header + '"window(4), int8",64,2,2.5,0.01,0.005,0.02,0,0,1,0,0,1,bonsai eval a\n')
    header = "structure,share,heal,stored,bytes,tokens_per_second,validation,test,added,margin,to_best,to_best_margin,p"
    rows = "dense,1,0,3500,14000,10,2,2,0,,,,,1,1,,2,bonsai eval a\n"
    rows += "lowrank,0.5,20,3000,12000,10,2,2,0.1,0.02,0,,,1,1,rank 3,2,bonsai compress a --heal 20\n"
    (studies / "compress.csv").write_text(header + ",best,frontier,becomes,test_by_seed,command\n" + rows)
    return folder


@pytest.fixture
def client(runs: Path) -> TestClient:
    looks = iter([False, False, True])
    return TestClient(make_app(runs, hosts=["localhost"], stopping=lambda: next(looks)), base_url="http://localhost")


def test_the_stream_begins_with_everything(client: TestClient) -> None:
    answer = client.get("/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    [event] = [line for line in answer.text.splitlines() if line]  # nothing happened at the second look
    kinds = [message["kind"] for message in json.loads(event.removeprefix("data: "))]
    assert kinds == ["begin", "run", "lines", "changed", "changed", "state", "studies"]


def test_the_page_is_whole_and_may_load_nothing(client: TestClient) -> None:
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe-eval" not in answer.headers["content-security-policy"]
    assert "<!--" not in answer.text
    assert not [
        word for word in ("http://", "https://", "//cdn") if word in answer.text.replace("http://www.w3.org", "")
    ]
    assert len(answer.content) < 60_000


def test_samples_health_and_comparison_are_answered(client: TestClient) -> None:
    name = "%3Cb%3Ea"
    assert [sample["step"] for sample in client.get(f"/samples/{name}").json()] == [0, 2, 4]
    assert "<svg" in client.get(f"/health/{name}").text
    compared = client.get("/comparison", params={"run": ["<b>a", "nothing"]}).text
    assert "&lt;b&gt;a" in compared
    assert "<b>a" not in compared
    assert client.get("/comparison").text == ""


def test_points_of_studies_have_their_commands(client: TestClient, runs: Path) -> None:
    kv = client.get("/studies/kv/%3Cb%3Ea").json()
    assert kv["points"] == [
        {
            "x": 64.0,
            "y": 0.01,
            "interval": [0.005, 0.02],
            "front": True,
            "name": "window(4), int8",
            "group": "window",
            "command": "bonsai eval a",
        }
    ]
    dense, small = client.get("/studies/compress/%3Cb%3Ea").json()["points"]
    assert dense["command"] == "bonsai eval a"
    assert small == {
        "x": 3000.0,
        "y": 0.1,
        "interval": [0.08, 0.12000000000000001],
        "front": True,
        "name": "lowrank, 50%, healed for 20 steps: rank 3",
        "group": "lowrank",
        "command": "bonsai compress a --heal 20",
    }
    assert client.get("/studies/lr/%3Cb%3Ea").status_code == 404


def test_points_of_several_models_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    rows = "".join(f"{model},int8,64,0.01,0,0.02,1,bonsai eval {model}\n" for model in ("a", "b"))
    table = "model,policy,bits_per_token,added,low,high,frontier,command\n" + rows
    (tmp_path / "studies" / "kv.csv").write_text(table)
    found = read_study(tmp_path, "kv")
    assert found is not None
    assert [point["name"] for point in found["points"]] == ["a: int8", "b: int8"]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("sinks(4)+window(28), int8", "sinks+window"), ("full, int4(group=4), chunk=1", "full"), ("window(8)", "window")],
)
def test_policies_are_coloured_by_what_they_keep(policy: str, kept: str, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    table = f'policy,bits_per_token,added,low,high,frontier,command\n"{policy}",64,0.01,0,0.02,1,bonsai eval a\n'
    (tmp_path / "studies" / "kv.csv").write_text(table)
    found = read_study(tmp_path, "kv")
    assert found is not None
    assert [point["group"] for point in found["points"]] == [kept]


def test_nothing_else_is_answered(client: TestClient, runs: Path) -> None:
    (runs.parent / "secret").mkdir(exist_ok=True)
    make_run(runs.parent / "secret" / "run")
    for name in ("../secret/run", "..%2fsecret%2frun", "%2e%2e/secret/run", str(runs.parent / "secret" / "run")):
        assert client.get(f"/samples/{name}").status_code == 404
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/events").status_code == 405


def test_the_verb_serves_and_refuses(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bonsaigpt.serve.server import make_server

    def leaving(*arguments: Any, **options: Any) -> Any:
        server = make_server(*arguments, **options)
        server.should_exit = True
        return server

    monkeypatch.setattr("bonsaigpt.serve.server.make_server", leaving)
    assert main(["watch", str(runs), "--port", "0"]) == 0
    told = capsys.readouterr().err
    assert f"watching {runs} at http://127.0.0.1:" in told
    assert told.endswith("stopped\n")
    assert main(["watch", str(runs / "nothing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
