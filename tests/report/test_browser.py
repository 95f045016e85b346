"""The page in a browser. It needs Chromium on PATH and playwright (pip install -e .[browser]); else it is skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import OwnData, data_of

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e .[browser]")
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    if executable is None:
        pytest.skip("there is no Chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Opened:
    """A page, and what it said and asked for."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.tab = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme="light")
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-ready]")

    def close(self) -> None:
        """It has complained of nothing, and asked for nothing but itself and what it holds."""
        assert self.said == []
        assert [url for url in self.asked[1:] if not url.startswith("data:")] == []
        self.tab.close()

    def names(self) -> list[str]:
        return self.tab.locator(".card .name span:first-child").all_inner_texts()

    def until(self, words: str, place: str = "#panes p") -> None:
        self.tab.wait_for_function(
            "([place, words]) => document.querySelector(place).textContent.includes(words)", arg=[place, words]
        )

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a part of the open image is on the screen."""
        box = self.tab.locator("#panes .stack").first.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def pixel(self, x: float, y: float, place: str = "#panes canvas") -> list[int]:
        """Red, green, blue, alpha of an overlay."""
        script = """([place, x, y]) => {
            const canvas = document.querySelector(place), copy = document.createElement("canvas");
            copy.width = copy.height = 1;
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(canvas, -Math.floor(x * canvas.width), -Math.floor(y * canvas.height));
            return [...context.getImageData(0, 0, 1, 1).data];
        }"""
        return self.tab.evaluate(script, [place, x, y])


def test_a_run_s_page(browser: Any, run: Path, run_page: Path) -> None:
    import torch

    from afa.data.dataset import EvaluationImages
    from afa.prediction.model import load

    page = Opened(browser, run_page)
    tab, data = page.tab, data_of(run_page)
    assert page.names() == [image["name"] for image in data["images"]]
    assert tab.locator("#altered").is_hidden()

    tab.locator("#opacity").fill("25")
    opacity = "getComputedStyle(document.querySelector('.card canvas')).opacity"
    assert tab.evaluate(opacity) == "0.25" and tab.inner_text("#opacity-value") == "25 %"

    wanted = data["images"][0]["true"][0]
    tab.select_option("#filter", str(wanted))
    shown = [
        image["name"]
        for image in data["images"]
        if wanted in {*image["true"], *image["given"], *image["sources"][0]["predicted"]}
    ]
    assert page.names() == shown
    tab.select_option("#filter", "")
    tab.select_option("#order", "best")
    assert page.names() == [image["name"] for image in data["images"]][::-1]
    tab.select_option("#order", "worst")

    # By keyboard alone: into the first image, through images and layers, and out again.
    tab.locator(".card").first.focus()
    tab.keyboard.press("Enter")
    page.until("prediction")
    assert tab.inner_text("#viewer-title") == data["images"][0]["name"]
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#viewer-title") == data["images"][1]["name"]
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowDown")
    page.until("truth")
    tab.keyboard.press("+")
    assert tab.evaluate(opacity) == "0.35"

    # A click on a pixel shows its affinity, another click that of another one.
    model = load(run / "checkpoints/last", device="cpu")
    samples = {found.sample.name: found.sample for found in EvaluationImages(model.config.dataset)}
    sample = samples[data["images"][0]["name"]]
    with torch.no_grad():
        (said,) = model.method.predict([sample], ["affinity"], model.protocol)
    affinity = said.outputs["affinity"]
    height, width = affinity.grid  # type: ignore[union-attr]
    values = affinity.values[0].numpy()  # type: ignore[union-attr]
    seen = []
    for row, column in ((0, 0), (height - 1, 1)):
        tab.mouse.click(*page.at((column + 0.5) / width, (row + 0.5) / height))
        page.until(f"row {row + 1}, column {column + 1} of {height} x {width}")
        for y, x in ((0, 0), (height // 2, width // 2), (height - 1, width - 1)):
            tab.mouse.move(*page.at((x + 0.5) / width, (y + 0.5) / height))
            page.until(f"affinity: {round(values[row * width + column, y * width + x] * 63) / 63:.2f}", "#pixel")
        places = [divmod(int(place), width) for place in np.argsort(values[row * width + column])[[0, -1]]]
        low, high = (page.pixel((x + 0.5) / width, (y + 0.5) / height) for y, x in places)
        assert sum(low) < sum(high)
        seen.append(tab.evaluate("document.querySelector('#panes canvas').toDataURL()"))
    assert seen[0] != seen[1]
    tab.keyboard.press("Shift+ArrowUp")
    page.until(f"row {height - 1}, column 2 of")
    tab.keyboard.press("Escape")
    assert tab.locator("#viewer").is_hidden()
    assert tab.evaluate("document.activeElement.dataset.index") == "0"

    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.close()


def test_a_page_of_odd_names(browser: Any, tmp_path: Path, own: OwnData) -> None:
    from afa.commands.report import main

    own.name_classes(["</script><b>", "<img src=x onerror=alert(1)>", *(f"class {index}" for index in range(3, 81))])
    mask = np.zeros((20, 30), np.uint8)
    mask[:10], mask[15:] = 1, 255
    own.add("<b>bold", mask, np.where(mask == 255, 2, mask).astype(np.uint8))
    assert main([*own.arguments, "--output", str(tmp_path / "page.html")]) == 0
    page = Opened(browser, tmp_path / "page.html")
    tab = page.tab
    assert page.names() == ["<b>bold"] and tab.locator("b").count() == 0
    assert tab.locator("main img").count() == 1
    assert "</script><b>" in tab.inner_text("#legend") and "</script><b>" in tab.inner_text(".scores")
    assert tab.locator("#matrix th").count() == 1 + 81 + 81
    tab.click(".card")
    tab.select_option("#viewer-layer", "truth")
    page.until("truth")
    assert page.pixel(0.5, 0.1)[:3] == data_of(tmp_path / "page.html")["palette"][1]
    hatched = {tuple(page.pixel(x / 30 + 0.01, 0.9)) for x in range(30)}
    assert hatched == {(255, 255, 255, 255), (105, 105, 105, 255)}
    tab.mouse.move(*page.at(0.5, 0.1))
    page.until("truth: </script><b>; prediction: </script><b>", "#pixel")
    tab.select_option("#viewer-layer", "errors")
    page.until("red")
    assert page.pixel(0.5, 0.1) == page.pixel(0.5, 0.6) == [20, 60, 40, 255]
    page.close()
