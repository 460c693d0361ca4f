"""The pictures in graphviz's language, and what happens where its program is missing or fails."""

import subprocess
import time
from pathlib import Path

import pytest
import torch
import torchvision

from fastgraph.export import graphs
from fastgraph.export.graphs import Graph, dot, inductor
from tests import pictures

NEEDS_DOT = pytest.mark.skipif(not graphs.have_dot(), reason="graphviz's dot is not installed")


def test_boxes_figures_and_colours() -> None:
    source = graphs.to_dot(pictures.net())
    for index in range(3):
        assert f"subgraph cluster_{index}" in source
    assert "label=conv_pool_mlp labeljust=l" in source
    assert r"conv1.weight, conv1.bias, fc1.weight,\nfc2.weight, fc1.bias, fc2.bias\n644 MFLOP" in source
    assert r"conv2d\n[1, 16, 718, 478] float32\nconv1.weight, conv1.bias\n297 MFLOP · 26.1 MB" in source
    assert "0_conv2d -> 0_relu" in source.replace('"', "")
    assert r"\nof max_pool2d, relu" in source
    fills = {line.partition('fillcolor="')[2][:7] for line in source.splitlines() if 'fillcolor="#' in line}
    assert fills == {"#ffffff", "#eef3f9"}, "nothing was measured"
    measured = graphs.to_dot(pictures.deep())
    assert "µs (" in measured
    assert measured.count('fillcolor="#ff') > measured.count('fillcolor="#ffffff"')


@NEEDS_DOT
def test_three_files(tmp_path: Path) -> None:
    made, missing = graphs.render(graphs.to_dot(pictures.net()), tmp_path / "net")
    assert [path.name for path in made] == ["net.dot", "net.svg", "net.png"]
    assert missing == ""
    assert "conv_pool_mlp_default" in (tmp_path / "net.svg").read_text()
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_without_the_program_there_is_the_dot_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    made, missing = graphs.render("digraph {}", tmp_path / "net")
    assert made == [tmp_path / "net.dot"]
    assert made[0].read_text() == "digraph {}"
    assert "apt install graphviz" in missing
    assert "\n" not in missing


@NEEDS_DOT
def test_a_layout_that_fails_loses_nothing(tmp_path: Path) -> None:
    made, missing = graphs.render("digraph {", tmp_path / "bad")
    assert [path.name for path in made] == ["bad.dot"]
    assert missing.startswith("bad.svg: dot failed: ")
    assert "syntax error" in missing


def test_a_layout_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("dot", timeout)

    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/dot")
    monkeypatch.setattr(subprocess, "run", hang)
    made, missing = graphs.render("digraph {}", tmp_path / "large")
    assert made == [tmp_path / "large.dot"]
    assert missing == f"large.svg: dot took more than {dot.TIMEOUT_S} s; large.dot is there"


@NEEDS_DOT
def test_a_large_graph_is_laid_out_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50: 177 nodes captured, 122 rewritten. Without Inductor's part, which takes longer than all the rest."""
    monkeypatch.setattr(inductor, "kernels", lambda *_: Graph("Inductor", missing="left out"))
    picture = graphs.draw(torchvision.models.resnet50().eval(), (torch.rand(1, 3, 64, 64),))
    assert (len(picture.eager.nodes), len(picture.rewritten.nodes)) == (177, 122)
    assert len(picture.regions()) == 53
    assert graphs.to_html("ResNet", [picture]).count("<button type=button class=") == 177 + 122
    started = time.perf_counter()
    made, missing = graphs.render(graphs.to_dot(picture), tmp_path / "resnet")
    assert (len(made), missing) == (3, "")
    assert time.perf_counter() - started < 20
