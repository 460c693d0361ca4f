"""The page in a real browser: plots drawn, no complaint on the console, phone and wide screen, light and dark."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastgraph.bench import cli
from fastgraph.bench.html import page, table_of
from fastgraph.bench.picture import draw
from fastgraph.bench.plots import glance, latency, log_ticks, roofline, speedup, throughput
from fastgraph.bench.roofline import GPUS, floors
from tests.bench_samples import build_small, case_report, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report with three batches and modelled floors."""
    modelled = tuple(asdict(one) for one in floors("small, batch 4", build_small(4), "H100", "fp32"))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(replace(report(), modelled=modelled)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "light"), (1280, "dark")])
def test_page_in_a_browser(browser: Any, file: Path, width: int, scheme: str) -> None:
    complaints: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    tab.goto(file.as_uri())
    tab.wait_for_selector(".js-plotly-plot .main-svg")
    assert complaints == []
    assert tab.locator(".js-plotly-plot").count() == 5  # at a glance, latency, throughput, speed-up, roofline
    assert tab.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    sizes = tab.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map((p) => p.offsetWidth)")
    assert all(250 < size <= width for size in sizes)
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(13, 17, 23)" if scheme == "dark" else "rgb(255, 255, 255)")
    ink = tab.evaluate("document.querySelector('.js-plotly-plot').layout.font.color")
    assert ink == ("#e6edf3" if scheme == "dark" else "#1b1f24")
    picture = tab.screenshot(full_page=True)
    assert len(picture) > 20_000
    tab.close()


def test_table_sorts_by_a_click(browser: Any, file: Path) -> None:
    tab = browser.new_page()
    tab.goto(file.as_uri())
    head = tab.locator("table.sortable th", has_text="median").first
    medians = "[...document.querySelectorAll('table.sortable tbody tr')].map((r) => r.cells[2].dataset.value)"
    for direction in (1, -1):
        head.locator("button").click()
        values = tab.evaluate(medians)
        figures = [direction * float(value) for value in values if value]
        assert figures == sorted(figures)
        assert values[len(figures) :] == [""] * (len(values) - len(figures))  # those without a speed stay below
    assert head.get_attribute("aria-sort") == "descending"
    tab.close()


def test_what_comes_from_outside_is_escaped(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "Some &lt;CPU&gt;" in text
    assert "<thing>" not in text
    assert "Model of H100 SXM: not measured" in text
    assert f"Peaks: {GPUS['H100'].source}." in text


def test_table_lists_every_backend() -> None:
    made = table_of([case_report()])
    assert made.count("<tr") == 6
    assert made.count('class="ours"') == 1
    assert made.count('class="out"') == 2


def test_plots_hold_the_figures() -> None:
    cases = [case_report(16, 2e-5), case_report(1, 1e-5)]
    ours = {trace.name: trace for trace in latency(cases).data}["fastgraph"]
    assert (list(ours.x), list(ours.y)) == ([1, 16], [1e-5, 2e-5])  # by batch, whatever the order
    samples = {trace.name: trace for trace in throughput(cases).data}["fastgraph"]
    assert list(samples.y) == pytest.approx([1e5, 8e5])
    bars = {trace.name: list(trace.x) for trace in speedup(cases).data}
    assert bars["fastgraph"] == pytest.approx([2.5, 5.0])
    assert "eager" not in bars  # it is the line at 1
    assert "onnxruntime" not in bars  # wrong: it has no speed
    roof = {trace.name: trace for trace in roofline(cases).data}
    assert len(roof["fastgraph"].x) == 2
    assert "fma 90 GFLOP/s, memory 9 GB/s" in roof


def test_ticks_are_round_numbers() -> None:
    assert log_ticks([0.03, 0.5]) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    assert log_ticks([1, 1e6]) == [10.0**n for n in range(7)]
    assert log_ticks([]) == []


def test_plot_at_a_glance_has_a_line_for_each_case() -> None:
    figure = glance([case_report(1, 2e-5), case_report(16, 8e-5)])
    ours = {trace.name: trace for trace in figure.data}["fastgraph"]
    assert list(ours.x) == pytest.approx([2.5, 0.625])
    assert list(ours.y) == ["DeepLearningModel,<br>batch 1", "DeepLearningModel,<br>batch 16"]


def test_pictures_for_a_readme(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    light, dark = draw(report(), tmp_path / "new")
    for path, paper in ((light, (255, 255, 255)), (dark, (13, 17, 23))):
        with Image.open(path) as picture:
            assert picture.convert("RGB").getpixel((0, 0)) == paper
            assert picture.width == 2 * 830
        assert path.stat().st_size < 200_000


def test_a_picture_that_cannot_be_drawn_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["picture", str(tmp_path / "none.json")])
    assert stopped.value.code == 2
    assert "none.json: cannot be read" in capsys.readouterr().err
