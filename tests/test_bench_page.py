"""The page in a real browser: plots drawn, no complaint on the console, phone and wide screen, light and dark."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastgraph.bench import cli
from fastgraph.bench.ceilings.roofline import GPUS, floors
from fastgraph.bench.report.html_tables import case_tables
from fastgraph.bench.report.page import AT_ONCE, HOW, LIMIT, RESTING, SERVER, explanations, page
from fastgraph.bench.report.picture import draw
from fastgraph.bench.report.plots import glance, latency, log_ticks, roofline, speedup, throughput, total
from fastgraph.bench.report.report import Report
from tests.bench_samples import FAST, build_small, case_report, report

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


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "light"), (1280, "light"), (1280, "dark")])
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
    assert tab.locator(".js-plotly-plot .legend .traces").count() == 0
    assert tab.locator(".legend button").count() == 3  # one legend for all plots, with those that have a speed
    for box in tab.locator(".scroll:visible").element_handles():
        whole, seen = box.evaluate("(e) => [e.scrollWidth, e.clientWidth]")
        assert whole == seen or width < 1000  # no column is cut
        names = [head.inner_text().strip(" ▲▼") for head in box.query_selector_all("th[scope=col]")]
        for name in {"median", "x peer"} & set(names):
            assert width < 390 or names.index(name) < 3
            head = box.query_selector_all("th[scope=col]")[names.index(name)].bounding_box()
            assert width < 390 or head["x"] + head["width"] <= width  # seen without scrolling
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
    medians = "[...document.querySelector('table.sortable').tBodies[0].rows].map((r) => r.cells[1].dataset.value)"
    for direction in (1, -1):
        head.locator("button").click()
        values = tab.evaluate(medians)
        figures = [direction * float(value) for value in values if value]
        assert figures == sorted(figures)
        assert values[len(figures) :] == [""] * (len(values) - len(figures))  # those without a speed stay below
    assert head.get_attribute("aria-sort") == "descending"
    tab.close()


def test_the_legend_hides_a_backend_in_all_plots(browser: Any, file: Path) -> None:
    tab = browser.new_page()
    tab.goto(file.as_uri())
    tab.wait_for_selector(".js-plotly-plot .main-svg")
    states = """[...document.querySelectorAll('.js-plotly-plot')].map((p) =>
        p.data.filter((t) => t.name === 'fastgraph').map((t) => t.visible ?? true))"""
    entry = tab.locator(".legend button", has_text="fastgraph")
    for shown in (False, True):
        entry.click()
        assert tab.evaluate(states) == [[shown]] * 5
        assert entry.get_attribute("aria-pressed") == str(shown).lower()
    tab.close()


def test_several_processes_have_their_plot(tmp_path: Path) -> None:
    both = processes()
    (bars,) = total(both.cases[0]).data
    assert list(bars.y) == ["eager", "compile", "fastgraph"]
    assert list(bars.text) == ["1,000", "4,000", "5,000"]
    assert "<h2>2 processes at once, fp32, cpu, 2 threads</h2>" in page(both)
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    written = draw(both, tmp_path)
    assert [path.name for path in written] == [f"processes-DeepLearningModel-16-{s}.png" for s in ("light", "dark")]
    assert all(path.stat().st_size > 5_000 for path in written)


def processes() -> Report:
    """A report of two processes at once."""
    made = case_report(16)
    rows = tuple(
        replace(row, timing=replace(row.timing, round_calls_per_s=(1e3 * i,) * 9)) if row.timing else row
        for i, row in enumerate(made.rows, 1)
    )
    return replace(report(replace(made, rows=rows)), plan=replace(FAST, processes=2))


def test_the_page_says_what_a_mode_measures() -> None:
    assert explanations(FAST) == [HOW, LIMIT]
    assert explanations(replace(FAST, pause_s=1e-4)) == [HOW, RESTING]
    assert explanations(replace(FAST, processes=2)) == [HOW, AT_ONCE]
    server = replace(report(), plan=replace(FAST, mode="server", rate_per_s=2e3))
    assert "mode server: 2,000 queries a second arrive at random (Poisson): <code>" in page(server)
    assert escape(SERVER) in page(server)


def test_what_comes_from_outside_is_escaped(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "Some &lt;CPU&gt;" in text
    assert "<thing>" not in text
    assert "Model of H100 SXM: not measured" in text
    assert f"Peaks: {GPUS['H100'].source}." in text


def test_table_lists_every_backend() -> None:
    made = case_tables([case_report()])
    assert made.count("<tr") == 2 * 6  # what calls took, and what they cost beside
    assert made.count('class="ours"') == 2
    assert made.count('class="out"') == 4
    head = made.partition("</thead>")[0]
    assert "calls/s" not in head  # nobody has a figure there
    assert head.index("x peer") < head.index("x eager")


def test_plots_hold_the_figures() -> None:
    cases = [case_report(16, 2e-5), case_report(1, 1e-5)]
    ours = {trace.name: trace for trace in latency(cases).data}["fastgraph"]
    assert (list(ours.x), list(ours.y)) == ([1, 16], [1e-5, 2e-5])  # by batch, whatever the order
    samples = {trace.name: trace for trace in throughput(cases).data}["fastgraph"]
    assert list(samples.y) == pytest.approx([1e5, 8e5])
    bars = {trace.name: [x + trace.base for x in trace.x] for trace in speedup(cases).data}  # from eager's line
    assert bars["fastgraph"] == pytest.approx([2.5, 5.0])
    assert all(trace.base == 1 and trace.textposition == "outside" for trace in speedup(cases).data)
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
