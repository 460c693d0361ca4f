"""The page: in itself, and in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastgraph.export import graphs
from fastgraph.export.graphs import page
from fastgraph.export.graphs.nodes import Edge, Graph, Node, Picture
from tests import pictures

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(graphs.to_html("two <models>", [pictures.deep(), pictures.net()]), encoding="utf-8")
    return path


def node(name: str, *origins: str) -> Node:
    return Node(name, "relu", (1,), "float32", origins=origins)


def test_the_page_needs_nothing_else(file: Path) -> None:
    html = file.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(\s*["']?http|fetch\(""", html)
    assert "two &lt;models&gt;" in html
    assert "{{" not in html


def test_a_rewritten_node_stands_beside_the_eager_nodes_that_it_stands_for() -> None:
    rows = {"x": 0, "a": 1, "b": 2, "c": 3}
    graph = Graph("g", (node("x", "x"), node("ab", "a", "b"), node("cast"), node("xc", "x", "c")))
    pieces = [(first, end, piece.name, begins) for first, end, piece, begins in page._pieces(graph, rows)]
    assert pieces == [
        (0, 1, "x", True),
        (1, 3, "ab", True),
        (2, 3, "cast", True),  # stands for none: with the node before it
        (0, 1, "xc", True),
        (3, 4, "xc", False),  # its other part
    ]
    bands = page._bands(page._pieces(graph, rows))
    assert [(first, end, [piece[2].name for piece in band]) for first, end, band in bands] == [
        (0, 1, ["x", "xc"]),
        (1, 3, ["ab", "cast"]),
        (3, 4, ["xc"]),
    ]


def test_only_values_that_pass_a_node_by_are_arcs() -> None:
    eager = Graph("g", (node("a", "a"), node("b", "b"), node("c", "c")), (Edge("a", "b"), Edge("b", "c")))
    picture = Picture("p", eager, eager, Graph("none", missing="no <reason>"))
    assert "<path" not in graphs.to_html("t", [picture])
    assert graphs.to_html("t", [picture]).count('class="band next"') == 4
    assert "no &lt;reason&gt;" in graphs.to_html("t", [picture])
    skipping = Graph("g", eager.nodes, (*eager.edges, Edge("a", "c")))
    assert graphs.to_html("t", [Picture("p", skipping, eager, eager)]).count("<path") == 1


def test_a_line_goes_past_eager_nodes_that_no_kernel_stands_for() -> None:
    eager = Graph("g", (node("a", "a"), node("b", "b"), node("c", "c")), (Edge("a", "b"), Edge("b", "c")))
    without = Graph("k", (node("a", "a"), node("c", "c")), (Edge("a", "c"),))
    html = graphs.to_html("t", [Picture("p", eager, eager, without)])
    assert f'class="band next" style="grid-row:1/2;--gap:{page.ROW_EM:.2f}em"' in html
    assert html.count('class="band next" style="grid-row:1/2;--gap:0.00em"') == 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser of the system's."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)}): apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, file: Path, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page in a window, and what goes to the console."""
    window = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url)
    )
    window.goto(file.as_uri())
    return window, said


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "light"), (1280, "dark")])
def test_in_a_browser(browser: Any, file: Path, width: int, scheme: str) -> None:
    window, said = opened(browser, file, width, scheme)
    assert window.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    shot = Image.open(BytesIO(window.screenshot(full_page=True))).convert("L")
    darkest, lightest = shot.getextrema()
    assert lightest - darkest > 150, "the screenshot is empty"
    ground = shot.getpixel((width - 2, shot.height - 2))
    assert isinstance(ground, int)
    assert (ground < 80) == (scheme == "dark")
    assert sum(count > 0 for count in shot.histogram()) > 20
    visible = window.locator("button.card:visible").count()
    every = sum(len(graph.nodes) for picture in (pictures.deep(), pictures.net()) for graph in picture.graphs)
    eager = sum(len(picture.eager.nodes) for picture in (pictures.deep(), pictures.net()))
    assert visible == (eager if width == 320 else every)
    assert said == []
    window.close()


def test_figures_of_a_node_appear_when_pointed_at_and_by_keyboard(browser: Any, file: Path) -> None:
    window, said = opened(browser, file, 1280)
    panel = window.locator("#panel")
    assert not panel.is_visible()
    window.locator("button.c0", has_text="conv2d").hover()
    assert "operations: 296,528,256 FLOP" in panel.inner_text()
    assert "parameters: conv1.weight, conv1.bias" in panel.inner_text()
    linked = window.locator(".linked").all_inner_texts()
    assert [text.split()[0] for text in linked] == ["fastgraph.conv_pool_mlp", "layout", "layout", "library"]
    window.keyboard.press("Escape")
    assert not panel.is_visible()
    names = []
    for _ in range(60):
        window.keyboard.press("Tab")
        names.append(window.evaluate("document.activeElement.dataset.figures || ''").partition("\n")[0])
    for expected in ("node: linear", "node: mlp_default", "node: op3", "node: conv2d"):
        assert expected in names
    assert said == []
    window.close()


def test_zoom_by_buttons_and_keys(browser: Any, file: Path) -> None:
    window, _ = opened(browser, file, 1280)
    height = lambda: window.locator("button.c0").first.bounding_box()["height"]  # noqa: E731
    before = height()
    window.get_by_label("larger").click()
    assert height() == pytest.approx(1.2 * before, rel=0.02)
    window.keyboard.press("-")
    assert height() == pytest.approx(before, rel=0.02)
    window.keyboard.press("-")
    assert window.locator(".zoom output").inner_text() == "83 %"
    window.keyboard.press("0")
    assert height() == pytest.approx(before, rel=0.02)
    window.close()


def test_a_narrow_page_shows_the_column_that_is_chosen(browser: Any, file: Path) -> None:
    window, _ = opened(browser, file, 300)
    section = window.locator("section").first
    assert section.locator("button.c0:visible").count() == len(pictures.deep().eager.nodes)
    section.get_by_text("Rewritten (fastgraph)").first.click()
    assert section.locator("button.c0:visible").count() == 0
    assert section.locator("button.c1:visible").count() == len(pictures.deep().rewritten.nodes)
    window.close()


def test_the_figures_are_a_table_too(browser: Any, file: Path) -> None:
    window, _ = opened(browser, file, 1280)
    window.locator("summary").nth(1).click()
    cells = window.locator("details").nth(1).locator("tr", has_text="max_pool2d").first.locator("td").all_inner_texts()
    assert cells[1:4] == ["max_pool2d", "max_pool2d", json.dumps([1, 16, 358, 238])]
    assert cells[5] == str(9 * 16 * 358 * 238)
    window.close()
