"""The handbook builds without a warning (`make docs`), needs no network, and shows every page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="pip install 'bonsaigpt[docs]' to build the handbook")
pytest.importorskip("mkdocstrings_handlers", reason="pip install 'bonsaigpt[docs]' to build the handbook")

ROOT = Path(__file__).resolve().parents[1]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build`, as `make docs` does it."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_menu_and_has_its_title(site: Path) -> None:
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        html = site / f"{page.stem}.html"
        assert f'href="{html.name}"' in menu or page.name == "index.md"
        assert "<h1" in html.read_text(encoding="utf-8")


def test_nothing_comes_from_the_network(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text("utf-8"))
        assert not found, f"{page.name} loads {found}"


def test_the_reference_has_what_programs_build_on(site: Path) -> None:
    page = (site / "reference.html").read_text(encoding="utf-8")
    for name in ("bonsaigpt.api.verbs.train", "bonsaigpt.api.model.Model.sample", "bonsaigpt.errors.ConfigError"):
        assert f'id="{name}"' in page


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n[gone](gone.md)\n", encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\nstrict: true\n", encoding="utf-8")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "gone.md" in done.stdout + done.stderr
