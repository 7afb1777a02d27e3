"""docs/distributed.md is true: its commands run, torchrun knows their flags, its SLURM script starts what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bonsaigpt.checkpoint import RunDirectory

if os.name != "posix":
    pytest.skip("processes are forked as POSIX does, and the script is for bash", allow_module_level=True)

from crowd import LOOPBACK, run_crowd
from launcher import run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "distributed.md"
SCRIPT = ROOT / "docs" / "examples" / "train.sbatch"


def commands(page: str) -> list[list[str]]:
    """The lines of the page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def launched(command: list[str]) -> tuple[dict[str, object], list[str]]:
    """What a torchrun command means by torchrun's own parser, and what it starts."""
    from torch.distributed.run import get_args_parser

    parsed = vars(get_args_parser().parse_args(command[1:]))
    assert parsed["module"]
    assert parsed["training_script"] == "bonsaigpt"
    return parsed, parsed["training_script_args"]


def quick(argv: list[str], flags: list[str]) -> list[str]:
    """A few steps of a tiny model; one that goes on takes as many more as the page says hundreds."""
    if "--resume" in argv:
        pairs = zip(["", *argv[:-1]], argv, strict=True)
        return [str(int(word) // 100) if before == "--train.steps" else word for before, word in pairs]
    return [*argv, *flags, "--train.steps", "4", "--train.eval_interval", "2", "--data.tokenizer.kind", "chars"]


@pytest.fixture
def folder(tmp_path: Path, tiny_text: Path) -> Path:
    """Where the commands are typed: the user's texts are there."""
    (tmp_path / "my-texts").mkdir()
    shutil.copy(tiny_text, tmp_path / "my-texts")
    return tmp_path


def test_the_commands_for_one_machine_run_in_order(folder: Path, tiny_flags: list[str]) -> None:
    found = [c for c in commands(PAGE.read_text(encoding="utf-8")) if c[0] == "bonsai" or "--standalone" in c]
    assert len(found) >= 5
    for command in found:
        if command[0] == "bonsai":
            code: object = run(folder, quick(command[1:], tiny_flags))
        else:
            parsed, argv = launched(command)
            code = sum(run_crowd(folder, quick(argv, tiny_flags), int(str(parsed["nproc_per_node"]))))
        assert code == 0, f"{shlex.join(command)}\n{(folder / 'errors.txt').read_text()}"
    opened = RunDirectory.open(folder / "runs/sharded")
    assert opened.load("last").state["step"] == 11
    assert len(opened.environment["resumed"]) == 2
    assert {"together", "sharded", "steady"} == {path.name for path in (folder / "runs").iterdir()}


def test_the_commands_for_several_machines_are_torchruns() -> None:
    found = [c for c in commands(PAGE.read_text(encoding="utf-8")) if c[0] == "torchrun" and "--standalone" not in c]
    (first, argv), (second, same), (elastic, more) = map(launched, found)
    assert argv == same == more
    assert "--auto-resume" in argv
    assert {name for name in first if first[name] != second[name]} == {"node_rank"}
    assert first["max_restarts"] == 0, "with restarts a static start is refused"
    assert (elastic["rdzv_backend"], elastic["max_restarts"]) == ("c10d", 3)


def test_the_checks_see_commands_that_are_wrong(folder: Path, tiny_flags: list[str]) -> None:
    [flag, verb] = commands("```sh\ntorchrun --nprocs 2 -m bonsaigpt train x\ntorchrun -m bonsai train x\n```")
    with pytest.raises(SystemExit):
        launched(flag)
    with pytest.raises(AssertionError):
        launched(verb)
    assert run_crowd(folder, quick(["train", "my-text", "--data.paths", "my-texts"], tiny_flags), 2) == [2, 2]


# ------------------------------------------------------------------ the script for SLURM

STAND_INS = {
    "scontrol": '[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"',
    "srun": 'printf "%s\\n" "$@" > srun.txt; env > env.txt',
}


def submit(
    folder: Path, *words: str, stand_ins: dict[str, str] = STAND_INS, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The script as a job of two machines, where `srun` only notes what it is to start."""
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=folder, env=job | path | environment, capture_output=True, text=True
    )


def test_the_script_starts_torchrun_on_every_machine(tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    done = submit(tmp_path, "my-text", "--data.path", "a folder", SLURM_GPUS_ON_NODE="8", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "srun.txt").read_text().splitlines()
    parsed, argv = launched(words[words.index("torchrun") :])
    assert argv == ["train", "my-text", "--data.path", "a folder", "--auto-resume"], "quoted words stay whole"
    assert (parsed["nnodes"], parsed["nproc_per_node"], parsed["max_restarts"]) == ("2", "8", 3)
    assert (parsed["rdzv_backend"], parsed["rdzv_endpoint"]) == ("c10d", "node1:23456")
    assert parsed["rdzv_id"] == "123456-1", "a job that was queued again must not meet its past"
    environment = dict(line.split("=", 1) for line in (tmp_path / "env.txt").read_text().splitlines() if "=" in line)
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1", "without it bonsai refuses such a start"
    assert environment["BONSAI_RUNS"] == f"{tmp_path}/runs"


def test_the_script_fails_when_something_does(tmp_path: Path) -> None:
    assert submit(tmp_path).returncode == 2
    assert "usage" in submit(tmp_path).stderr
    assert not (tmp_path / "srun.txt").exists()
    assert submit(tmp_path, "my-text", SLURM_JOB_NODELIST="unknown").returncode != 0
    assert not (tmp_path / "srun.txt").exists()


def test_the_script_reads_a_list_of_hosts_to_its_end(tmp_path: Path) -> None:
    """A first line taken through a pipe kills a writer that is not done, and with it the job, now and then."""
    slow = {"scontrol": "for i in $(seq 1 200); do printf 'node%s\\n' $i; sleep 0.001; done"}
    done = submit(tmp_path, "my-text", stand_ins=STAND_INS | slow)
    assert done.returncode == 0, done.stderr
    assert "node1:23456" in (tmp_path / "srun.txt").read_text().splitlines()


def test_bash_would_see_a_broken_script(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sbatch"
    broken.write_text(SCRIPT.read_text().replace("\nfi\n", "\n"))
    assert subprocess.run(["bash", "-n", str(broken)], capture_output=True).returncode != 0


# ------------------------------------------------------------------ torchrun itself


@pytest.mark.slow
def test_two_static_agents_train_together(folder: Path, tiny_flags: list[str]) -> None:
    """The page's first lines for two machines; here both are this one."""
    both = [c for c in commands(PAGE.read_text(encoding="utf-8")) if "--node-rank" in c]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"first-host": "127.0.0.1", "29500": port, "8": "1"}
    agents: list[subprocess.Popen[str]] = []
    for command in both:
        words = [here.get(word, word.replace("/shared/", "")) for word in command[1:]]
        agent = [sys.executable, "-m", "torch.distributed.run", *quick(words, tiny_flags)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        agents.append(subprocess.Popen(agent, cwd=folder, env=os.environ | LOOPBACK, **pipes))
    said = [agent.communicate(timeout=180)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    opened = RunDirectory.open(folder / "runs/big")
    assert opened.load("last").state["step"] == 4
    assert opened.environment["processes"] == 2
