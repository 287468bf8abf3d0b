"""The pages in a real browser, headless Chromium: nothing fails, nothing leaves the page, everything can be reached."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.models import llama

sys.path.insert(0, str(ROOT / "tests/training"))
from test_report import HOSTILE, line, make_run

sync_api = pytest.importorskip("playwright.sync_api", reason="want: playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="want: no Chromium on PATH")


class Browser:
    """A page, and what went wrong or out in it."""

    def __init__(self, page: Any) -> None:
        self.page, self.faults, self.requests = page, [], []
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> Any:
        self.page.goto(path.absolute().as_uri())
        return self.page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=[(400, "light"), (1600, "dark")], ids=str)
def browser(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Browser]:
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    yield Browser(context.new_page())
    context.close()


def test_a_report_of_a_hostile_run_works_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    output = tmp_path / "run.html"
    assert run(["report", str(make_run(tmp_path / "run", text=HOSTILE)), "-o", str(output)]) == 0
    page = browser.open(output)
    figure = page.locator("figure").first
    for axis in ("tokens", "elapsed_s", "flops", "step"):
        page.select_option("#axis", axis)
        assert figure.locator(".mean").count() == 2
    page.check("#log")
    figure.focus()
    page.keyboard.press("ArrowRight")
    assert "loss" in page.inner_text("#readout")
    page.keyboard.press("+")
    assert page.is_visible("#whole")
    page.keyboard.press("0")
    assert page.is_hidden("#whole")
    page.locator("figure.map svg").first.hover(position={"x": 250, "y": 10})
    assert "blk.0 0.02" in page.inner_text("#readout")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.faults == []
    assert browser.requests == [output.absolute().as_uri()]


def test_a_graph_is_folded_and_unfolded_by_mouse_and_keyboard(browser: Browser, tmp_path: Path) -> None:
    graph, output = tmp_path / "graph.bin", tmp_path / "graph.html"
    gg.trace(llama.loss, llama.Config(n_vocab=31, n_embd=16, n_head=4, n_layer=6, n_ff=24), batch=2, ctx=8).save(graph)
    assert run(["draw", str(graph), "-o", str(output)]) == 0
    page = browser.open(output)
    heights = [page.locator("svg:visible").bounding_box()["height"]]
    page.locator("[data-block]:visible").first.click(position={"x": 20, "y": 12})
    heights.append(page.locator("svg:visible").bounding_box()["height"])
    page.keyboard.press("Enter")
    heights.append(page.locator("svg:visible").bounding_box()["height"])
    assert heights[1] < heights[0] == heights[2]
    assert browser.faults == []
    assert browser.requests == [output.absolute().as_uri()]


def test_the_report_without_script_shows_its_curves(chromium: Any, tmp_path: Path) -> None:
    output = tmp_path / "run.html"
    assert run(["report", str(make_run(tmp_path / "run")), "-o", str(output)]) == 0
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(output.absolute().as_uri())
    assert page.locator("figure .mean").count() == 9
    assert page.locator("figure.map svg").first.is_visible()
    assert page.locator("figure svg").first.is_visible()
    assert page.is_hidden("#controls")


def test_a_report_prints(chromium: Any, tmp_path: Path) -> None:
    output = tmp_path / "run.html"
    assert run(["report", str(make_run(tmp_path / "run")), "-o", str(output)]) == 0
    page = chromium.new_page()
    page.goto(output.absolute().as_uri())
    assert page.pdf().startswith(b"%PDF")


def test_a_million_steps_open_within_two_seconds(chromium: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(line(step) for step in range(1, 1_000_001))
    output = tmp_path / "run.html"
    assert run(["report", str(folder), "-o", str(output)]) == 0
    page = chromium.new_page()
    page.goto(output.absolute().as_uri())
    page.wait_for_selector(".cross", state="attached", timeout=2000)
    assert json.loads(page.evaluate("JSON.stringify(runs[0].axes.step.length)")) == 4096
    assert output.stat().st_size < 2_000_000
