"""The OpenAPI description is true: schemathesis makes requests of it, right and wrong, and reads the answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serve.conftest import LIMITS, live

TOOL = Path(sys.executable).parent / "schemathesis"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(str(TOOL)) is None, reason="pip install schemathesis")
def test_no_request_of_the_description_breaks_the_server(runs: Path, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with live(runs, replace(LIMITS, tokens=20, queue=64)) as server:
        command = [str(TOOL), "run", f"{server.url}/openapi.json", "--checks", checks, "--max-examples", "25"]
        command += [
            "--generation-deterministic",
            "--phases",
            "coverage,fuzzing",
            "--workers",
            "2",
            "--request-timeout",
            "120",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            answers = re.findall(r'route="(/[\w/]+)",status="(\d+)"} (\d+)', answer.read().decode())
    made = {status: sum(int(count) for _, at, count in answers if at == status) for _, status, _ in answers}
    assert made["200"] > 20
    assert made["400"] > 50
    assert not [status for status in made if status.startswith("5")]
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
