"""The playground in a browser: Debian's Chromium, driven by Playwright, on a desk and on a phone."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from tests.serve.conftest import Live  # noqa: E402

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextlib.contextmanager
def opened(browser: Any, server: Live, *, width: int = 1280, height: int = 900, **more: Any) -> Iterator[Any]:
    """The page, ready; it may complain of nothing and ask for nothing from elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: r.url.startswith((server.url, "data:")) or complaints.append(r.url))
    page.on("response", lambda r: r.status < 400 or complaints.append(f"{r.status} {r.url}"))
    page.goto(server.url)
    page.wait_for_selector("#next li")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    assert complaints == []
    context.close()


def write(page: Any, text: str, *, tokens: int = 24) -> None:
    page.fill("#prompt", text)
    page.fill("#count", str(tokens))
    page.click("#go")
    written(page)


def written(page: Any) -> None:
    """Wait until the text is whole and its figures stand."""
    page.wait_for_selector('.text[data-side="0"] .figures:has-text("loss")')
    page.wait_for_selector("#more:enabled")


def text(page: Any, side: int = 0) -> str:
    spans = page.locator(f'.text[data-side="{side}"] .t').all_inner_texts()
    return "".join(spans).replace("⏎", "")


def test_write_and_branch(browser: Any, server: Live) -> None:
    with opened(browser, server) as page:
        write(page, "the cat")
        first = text(page)
        assert first.startswith("the cat")
        assert len(page.locator(".t").all()) == 7 + 24
        page.locator(".t").nth(15).click()
        page.wait_for_selector("#next .chosen")  # the token that stands there, among its alternatives
        other = page.locator("#next button:not(.chosen)").first
        other.click()
        page.wait_for_selector("#more:enabled")
        page.wait_for_selector('.figures:has-text("loss")')
        assert text(page)[:15] == first[:15]
        assert text(page)[:16] != first[:16]


@pytest.mark.slow
def test_the_rules_move_the_distribution(browser: Any, server: Live) -> None:
    with opened(browser, server) as page:
        page.fill("#prompt", "the ca")
        page.locator("#top_k").fill("2")
        page.wait_for_selector('#where:has-text("2 of 18 tokens can be drawn")')
        assert len(page.locator("#plot rect.r").all()) == 18
        write(page, "the ca")
        again = text(page)
        page.fill("#seed", "2")
        page.click("#go")
        page.wait_for_selector("#more:enabled")
        assert text(page) != again


@pytest.mark.slow
def test_two_policies_side_by_side(browser: Any, server: Live) -> None:
    with opened(browser, server) as page:
        page.check("#compare")
        b = '.side[data-side="1"]'
        page.select_option(f"{b} .model", "letters")
        page.select_option(f"{b} .keep", "window")
        page.select_option(f"{b} .n", "4")
        page.select_option(f"{b} .bits", "2 bits")
        assert page.input_value(f"{b} .kv") == "window(4), int2"
        write(page, "the cat sat", tokens=40)
        page.wait_for_selector('.text[data-side="1"] .figures:has-text("parts at token")')
        mark = page.locator(".t.parts")
        assert [one.get_attribute("data-at") for one in mark.all()] == [mark.first.get_attribute("data-at")] * 2
        at = int(mark.first.get_attribute("data-at"))
        assert text(page, 0)[:at] == text(page, 1)[:at]
        assert text(page, 0)[at] != text(page, 1)[at]
        told = [page.inner_text(f'.text[data-side="{side}"] .figures') for side in (0, 1)]
        assert all(word in figures for word in ("loss of A's", "bits a token", "tokens/s") for figures in told)
        page.click("#attention summary")
        page.wait_for_selector("#heads button >> nth=1")
        page.select_option(f"{b} .keep", "everything")  # what stands there is read anew
        page.select_option(f"{b} .bits", "as computed")
        assert page.input_value(f"{b} .kv") == ""


_MEANWHILE = """async (anew) => {  // within the page: 300 tokens take no longer than a few clicks from here
  const one = (selector) => document.querySelector(selector);
  one("#go").click();
  while (document.querySelectorAll(".t").length < 12) await new Promise((done) => setTimeout(done));
  const stood = document.querySelectorAll('.text[data-side="0"] .t').length;
  if (anew) {
    one("#count").value = 3;
    one("#prompt").value = "a dog";
    one("#go").click();
  } else {
    const models = one('.side[data-side="0"] .model');
    models.value = "bytes";
    models.dispatchEvent(new Event("change"));
  }
  return stood;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("anew", [True, False])
def test_another_text_or_model_ends_the_writing(browser: Any, server: Live, anew: bool) -> None:
    with opened(browser, server) as page:
        page.check("#compare")
        page.fill("#prompt", "the cat")
        page.fill("#count", "300")
        stood = page.evaluate(_MEANWHILE, anew)
        assert stood < 300
        written(page)
        stands = text(page)
        assert page.locator('.text[data-side="0"] .t').count() == (8 if anew else stood)
        assert stands.startswith("a dog" if anew else "the cat")
        page.wait_for_timeout(300)
        assert text(page) == stands


@pytest.mark.slow
def test_the_same_on_both_sides_never_parts(browser: Any, server: Live) -> None:
    with opened(browser, server) as page:
        page.check("#compare")
        page.select_option('.side[data-side="1"] .model', "letters")
        write(page, "the cat", tokens=40)
        page.wait_for_selector('.text[data-side="1"] .figures:has-text("the same so far")')
        assert text(page, 0) == text(page, 1)
        assert not page.locator(".t.parts").all()


@pytest.mark.slow
def test_by_keyboard_alone(browser: Any, server: Live) -> None:
    with opened(browser, server) as page:
        page.focus("#prompt")
        page.keyboard.type("the ")
        page.keyboard.press("Control+Enter")
        written(page)
        first = text(page)
        for _ in range(40):  # to the text
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.classList.contains('t')"):
                break
        for key in ("End", "ArrowLeft", "ArrowLeft", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector("#next button:focus")
        page.wait_for_selector("#next .chosen")
        while page.evaluate("document.activeElement.classList.contains('chosen')"):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#more:enabled")
        page.wait_for_selector('.figures:has-text("loss")')
        at = len(first) - 3
        assert text(page)[:at] == first[:at]
        assert text(page)[at] != first[at]


@pytest.mark.slow
def test_themes_and_a_phone(browser: Any, server: Live) -> None:
    with opened(browser, server, width=390, height=844, color_scheme="dark", has_touch=True) as page:
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(ground)
        page.click("#theme")
        assert page.evaluate(ground) != dark
        page.reload()
        page.wait_for_selector("#next li")
        assert page.evaluate(ground) != dark  # it is remembered
        page.click("#theme")
        assert page.evaluate(ground) == dark
        write(page, "the cat")
        page.check("#compare")
        page.click("#attention summary")
        page.wait_for_selector("#heads button")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(browser: Any, server: Live, scheme: str) -> None:
    """By axe-core, a file that is read here and nowhere else: BONSAI_AXE, or what npm install axe-core left."""
    file = Path(os.environ.get("BONSAI_AXE", "node_modules/axe-core/axe.min.js"))
    if not file.is_file():
        pytest.skip("no axe-core here: npm install axe-core, or set BONSAI_AXE to its axe.min.js")
    with opened(browser, server, color_scheme=scheme, bypass_csp=True) as page:
        page.check("#compare")
        page.select_option('.side[data-side="1"] .keep', "window")
        write(page, "the cat")
        page.click("#attention summary")
        page.wait_for_selector("#heads button")
        page.evaluate(file.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")["violations"]
        grave = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
        assert grave == []


@pytest.mark.slow
def test_the_first_paint_is_there_at_once(browser: Any, server: Live) -> None:
    with opened(browser, server) as page:
        page.reload()
        page.wait_for_selector("#next li")
        [paint] = page.evaluate("performance.getEntriesByName('first-contentful-paint').map((e) => e.startTime)")
        assert 0 < paint < 2000  # benchmarks/README.md has the figure of a quiet machine
