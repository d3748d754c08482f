"""The report in a real browser: every figure drawn, light and dark, nothing fetched, nothing to complain about.

Runs wherever a Chromium is found (``chromium``, ``chromium-browser``, ``google-chrome``, or the environment variable
``DYNOME_CHROMIUM``); ``DYNOME_REQUIRE_CHROMIUM=1`` makes its absence a failure.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recordings import write_recording

from dynome_analysis.prediction import predict_performance
from dynome_analysis.report import write_report
from dynome_analysis.report.figures.style import DARK, LIGHT

pytestmark = pytest.mark.chromium

FIGURES = 16
NAMES = ("chromium", "chromium-browser", "google-chrome")

# Canvases lie in the shadow trees of Bokeh's views. Returns, per figure on the page, the canvases' distinct colours.
CANVASES = """
() => {
  const find = (root) => [...root.querySelectorAll("*")].flatMap((element) => [
    ...(element.tagName === "CANVAS" ? [element] : []), ...(element.shadowRoot ? find(element.shadowRoot) : []),
  ]);
  const hex = (data, at) => "#" + [0, 1, 2].map((k) => data[at + k].toString(16).padStart(2, "0")).join("");
  return [...document.querySelectorAll(".drawing")].map((drawing) => {
    const colours = {};
    for (const canvas of find(drawing)) {
      if (!canvas.width || !canvas.height) continue;
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] === 255) colours[hex(data, at)] = (colours[hex(data, at)] ?? 0) + 1;
      }
    }
    return {id: drawing.id, width: drawing.clientWidth, height: drawing.clientHeight, colours};
  });
}
"""


def find_chromium() -> str:
    found = os.environ.get("DYNOME_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    message = f"no Chromium: install one of {', '.join(NAMES)} or name it with DYNOME_CHROMIUM"
    if os.environ.get("DYNOME_REQUIRE_CHROMIUM") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every kind of figure, on a recording whose names are hostile."""
    folder = tmp_path_factory.mktemp("chromium")
    hostile = "<img src=x onerror=\"document.title='taken'\">"
    main = write_recording(folder / "main", epochs=14, dead_units=1, sites={hostile: 12, "$$x^2$$": 8})
    runs = [
        write_recording(folder / f"{seed} <b>bold</b>".replace("/", " "), seed=seed, samples=20, epochs=4)
        for seed in range(8)
    ]
    return write_report([main], folder / "report.html", prediction=predict_performance(runs, epochs=2), patience=3)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    executable = find_chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """A page that was opened, with everything that it said and asked for."""

    def __init__(self, browser: Any, report: Path, *, scheme: str) -> None:
        self.url = report.as_uri()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.url)
        self.page.wait_for_selector("html[data-drawn]", timeout=60_000)
        self.settle()

    def settle(self) -> None:
        """Wait for the frames that follow a change of colours or size."""
        self.page.wait_for_timeout(500)

    def check_drawn(self, colours: dict[str, str], *, width: int) -> None:
        """Every figure has its size, the colours of this scheme, and none of the other."""
        drawn = self.page.evaluate(CANVASES)
        assert len(drawn) == FIGURES
        other = set((DARK if colours is LIGHT else LIGHT).values()) - set(colours.values())
        for figure in drawn:
            assert figure["height"] > 100, figure["id"]
            assert figure["width"] > min(250, width / 2), figure["id"]
            inked = {colour for colour, count in figure["colours"].items() if count > 20}
            assert len(inked) >= 2, f"{figure['id']} is empty"
            assert set(colours.values()) & inked, figure["id"]
            assert not other & inked, figure["id"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width

    def check_quiet(self) -> None:
        """Nothing was fetched but the file, and nothing complained but about this test's reading of canvases."""
        assert self.asked == [self.url]
        told = [line for line in self.said if line.startswith(("error", "warning")) and "getImageData" not in line]
        assert told == []


@pytest.fixture(scope="module")
def light(browser: Any, report: Path) -> Visit:
    return Visit(browser, report, scheme="light")


def test_every_figure_is_drawn_wide_and_narrow(light: Visit) -> None:
    light.check_drawn(LIGHT, width=1280)
    light.page.set_viewport_size({"width": 390, "height": 900})
    light.settle()
    light.check_drawn(LIGHT, width=390)
    light.page.set_viewport_size({"width": 1280, "height": 900})
    assert light.page.title() == "What a network did while it learned"
    light.check_quiet()


def test_every_figure_is_drawn_in_the_dark(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, scheme="dark")
    visit.check_drawn(DARK, width=1280)
    visit.check_quiet()


def test_colours_follow_the_system_and_paper_stays_white(light: Visit) -> None:
    light.page.emulate_media(color_scheme="dark")
    light.settle()
    light.check_drawn(DARK, width=1280)
    light.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    light.settle()
    light.check_drawn(LIGHT, width=1280)
    light.page.emulate_media(color_scheme="light")
    light.check_quiet()


def test_pointing_at_a_curve_tells_its_values(light: Visit) -> None:
    drawing = light.page.locator(".drawing").first
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    light.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 120)
    light.settle()
    text = light.page.evaluate(
        """() => {
          const read = (root) => [...root.querySelectorAll("*")].map((element) =>
            element.shadowRoot ? element.shadowRoot.textContent + read(element.shadowRoot) : "").join(" ");
          return read(document);
        }"""
    )
    assert "epoch:" in text
    light.check_quiet()


def test_headings_and_names_serve_those_who_listen(light: Visit) -> None:
    light.page.keyboard.press("Tab")
    assert light.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    levels = light.page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((heading) => +heading.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    unnamed = light.page.evaluate(
        "[...document.querySelectorAll('figure, section, nav, table')].filter((e) =>"
        " !(e.querySelector('figcaption, caption, h2, a'))).length"
    )
    assert unnamed == 0
