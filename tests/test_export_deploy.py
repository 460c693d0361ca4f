"""The deployment folder and the command line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from fastgraph import export
from fastgraph.data import photograph
from fastgraph.export import cli, deploy, graphs, triton_config

PICTURES = ("svg", "png", "dot") if graphs.have_dot() else ("dot",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The whole folder, and what was said."""
    out, said = tmp_path_factory.mktemp("deployment"), list[str]()
    deploy.deploy([deploy.entry(key) for key in deploy.MODELS], out, say=said.append)
    return out, said


def test_everything_is_there(folder: tuple[Path, list[str]]) -> None:
    out, said = folder
    steps = ["deep_1_forward", "net_1_conv1", "net_2_pool", "net_3_fc1", "net_4_fc2", "net_5_prediction"]
    expected = {f"pictures/{stem}.{kind}" for stem in ("deep", "net", *steps) for kind in PICTURES}
    expected |= {f"triton/{key}/{name}" for key in deploy.MODELS for name in ("1/model.onnx", "config.pbtxt")}
    expected |= {"deep.onnx", "net.onnx", "index.html", "README.md", "triton/deep/labels.txt"}
    expected |= {f"client/{name}" for name in ("client.py", "client.cc", "digit_5.pgm", "photograph.ppm")}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == expected
    assert sum("largest error against float64" in line for line in said) == 2
    assert "fc1: torch.Size([1, 16, 358, 120])" in said


def test_the_page_has_graphs_steps_and_links_that_exist(folder: tuple[Path, list[str]]) -> None:
    out, _ = folder
    html = (out / "index.html").read_text(encoding="utf-8")
    assert html.count("data:image/svg+xml;base64,") == (6 if graphs.have_dot() else 0)
    links = re.findall(r'href="([^"#:]+)"', html)
    assert len(links) > 10
    assert all((out / link).is_file() for link in links)


def test_the_servers_files_run_and_fit_their_configuration(folder: tuple[Path, list[str]]) -> None:
    """Each output has a row for each row of the input, which is what the server relies on."""
    out, _ = folder
    for key, shape in (("deep", (5, 784)), ("net", (2, 3, 720, 480))):
        config = triton_config.parse((out / "triton" / key / "config.pbtxt").read_text())
        session = export.session(out / "triton" / key / "1" / "model.onnx")
        (output,) = session.run(None, {config.input[0].name: np.zeros(shape, np.float32)})
        assert output.shape[0] == shape[0]
        assert len(output.shape) == 1 + len(config.output[0].dims)
        assert all(want in (-1, got) for want, got in zip(config.output[0].dims, output.shape[1:], strict=True))


@pytest.mark.parametrize(
    ("key", "image", "expected"),
    [
        ("deep", "digit_5.pgm", r"class 5, probability 0\.[5-9]\d+"),
        ("net", "photograph.ppm", r"output \[5728, 1\], 0\.5\d* to 0\.\d+, mean 0\.[6-9]\d+"),
    ],
)
def test_the_python_client_runs(folder: tuple[Path, list[str]], key: str, image: str, expected: str) -> None:
    out, _ = folder
    command = [sys.executable, out / "client" / "client.py", out / f"{key}.onnx", out / "client" / image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(expected, done.stdout.strip()), done.stdout


def compiled(out: Path, folder: Path) -> Path:
    """The C++ client, against onnxruntime's headers and the library of its Python package."""
    fetched = Path(__file__).parents[1] / "build/onnxruntime/usr/include/onnxruntime"
    named = os.environ.get("ONNXRUNTIME_INCLUDE")
    places = [named] if named else [fetched, "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    header = "onnxruntime_cxx_api.h"
    include = next((str(place) for place in places if (Path(place) / header).is_file()), None)
    if include is None or shutil.which("g++") is None:
        pytest.skip(f"no g++, or no {header}: .ci/onnxruntime_headers build/onnxruntime, or ONNXRUNTIME_INCLUDE=FOLDER")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    command = ["g++", "-std=c++17", "-O1", str(out / "client" / "client.cc"), "-I", include, "-L", str(folder)]
    done = subprocess.run(
        [*command, "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", str(folder / "client")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "client"


def test_the_cpp_client_runs(folder: tuple[Path, list[str]], tmp_path: Path) -> None:
    out, _ = folder
    client = compiled(out, tmp_path)
    for key, image, expected in (
        ("deep", "digit_5.pgm", r"class 5, probability 0\.[5-9]\d+"),
        ("net", "photograph.ppm", r"5728 outputs, 0\.5\d* to 0\.\d+, mean 0\.[6-9]\d+"),
    ):
        command = [client, out / f"{key}.onnx", out / "client" / image]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(expected, done.stdout.strip()), done.stdout
    done = subprocess.run([client, out / "deep.onnx", out / "README.md"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs a binary PGM or PPM" in done.stderr


def test_the_clients_image_is_the_photograph(folder: tuple[Path, list[str]]) -> None:
    pixels = np.asarray(Image.open(folder[0] / "client" / "photograph.ppm"), np.float32)
    again = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    assert (again - photograph()).abs().max() <= 1e-6


def test_the_metadata_are_in_the_files(folder: tuple[Path, list[str]]) -> None:
    about = onnxruntime.InferenceSession(folder[0] / "net.onnx", providers=["CPUExecutionProvider"]).get_modelmeta()
    assert about.graph_name == "Net"
    assert about.custom_metadata_map["preprocessing"] == "Resize 720x480, mean 0.5, std 0.5"


def test_both_exports_are_compared_in_one_run(folder: tuple[Path, list[str]]) -> None:
    from fastgraph.export.compare import compare

    path = folder[0] / "deep.onnx"
    line = compare(path, path, torch.rand(1, 784), threads=1)
    pattern = (
        r"deep.onnx on 1x784, onnxruntime, 1 thread, median of (\d+) rounds: .*: ([\d.]+) times as fast \(quartiles"
    )
    found = re.match(pattern, line)
    assert found is not None, line
    assert int(found[1]) >= 10
    assert 0.5 < float(found[2]) < 2, "a file is as fast as itself"


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([0.01] * 9, "10 ms, the plain export 20 ms; faster: 2.00 times as fast (quartiles 2.00 to 2.00)"),
        ([0.04] * 9, "40 ms, the plain export 20 ms; slower: 0.50 times as fast (quartiles 0.50 to 0.50)"),
        (
            [0.01, 0.04] * 4 + [0.02],
            "20 ms, the plain export 20 ms; no difference: 1.00 times as fast (quartiles 0.50 to",
        ),
    ],
)
def test_the_comparison_says_faster_slower_or_neither(ours: list[float], expected: str) -> None:
    from fastgraph.export.compare import verdict

    assert verdict(ours, [0.02] * 9).startswith(expected)


def test_steps_on_a_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((64, 48), 90).convert("RGB").save(tmp_path / "photo.png")
    out = tmp_path / "out"
    assert cli.main(["--model", "net", "--steps", "--image", str(tmp_path / "photo.png"), "--out", str(out)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "graphviz" not in line]
    assert lines[0] == "conv1: torch.Size([1, 16, 718, 478])"
    assert len(lines) == 5
    assert len(list(out.glob("net_*.dot"))) == 5
    assert len(list(out.iterdir())) == 5 * len(PICTURES)


def test_without_dot_the_rest_comes_out_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert cli.main(["--model", "deep", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("apt install graphviz") == 1
    assert {path.suffix for path in (tmp_path / "out" / "pictures").iterdir()} == {".dot"}
    assert "apt install graphviz" in (tmp_path / "out" / "index.html").read_text()


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on the standard error, status 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_with_something_in_it_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("")
    assert "exists; --overwrite replaces the files" in fails(["--out", str(tmp_path)], capsys)
    assert "exists; --overwrite replaces the files" in fails(["--out", str(tmp_path / "mine")], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "argument --out: cannot make the folder '" in fails(["--out", str(tmp_path / "file" / "out")], capsys)


def test_an_image_that_will_not_do_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "alpha.png")
    (tmp_path / "no.png").write_text("no")
    out = ["--model", "net", "--out", str(tmp_path / "out"), "--image"]
    assert "is RGBA (an alpha channel)" in fails([*out, str(tmp_path / "alpha.png")], capsys)
    assert "cannot be read as an image" in fails([*out, str(tmp_path / "no.png")], capsys)
    assert "there is no file at" in fails([*out, str(tmp_path / "none.png")], capsys)
    assert "is for the model net" in fails(["--model", "deep", "--image", "x.png"], capsys)
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = "error: a model must be deep, net, all or module:callable; got 'big'"
    assert message in fails(["--model", "big", "--input-shape", "1,3"], capsys)
    assert "--model big needs --input-shape, the batch first" in fails(["--model", "big"], capsys)


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder with models in it."""
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def small(): return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))\n"
        "class Rows(nn.Module):\n"
        "    def forward(self, x): return x.reshape(-1, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return "own_models"


def test_a_model_of_ones_own(own_models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--model", f"{own_models}:small", "--input-shape", "2,6", "--out", "out"]) == 0
    assert "small.onnx: verified on 2x6, 1x6, 3x6: largest error" in capsys.readouterr().out
    expected = {"small.onnx", "index.html", "README.md", "triton/small/1/model.onnx", "triton/small/config.pbtxt"}
    expected |= {f"pictures/small.{kind}" for kind in PICTURES}
    assert {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()} == expected
    assert "client" not in Path("out/README.md").read_text()
    made, x = sys.modules[own_models].small, torch.rand(5, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = made()
    (output,) = export.Binding(export.session("out/small.onnx"))(x)
    torch.testing.assert_close(output, model(x))


def test_what_the_server_cannot_batch_is_left_out_and_said(own_models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--model", f"{own_models}:Rows", "--input-shape", "2,6", "--out", "out"]) == 0
    message = "triton/Rows: not written: config: output: the first axis must be the batch; got shape ["
    assert message in capsys.readouterr().out
    assert Path("out/Rows.onnx").exists()
    assert not Path("out/triton/Rows").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "own_models:absent", "--input-shape", "2,6"],
            "own_models:absent cannot be imported: AttributeErr",
        ),
        (["--model", "own_models:small", "--input-shape", "2,7"], "model: torch.export cannot capture Sequential"),
        (
            ["--model", "own_models:small", "--input-shape", "2,x"],
            "--input-shape: must be a whole number from 1; got 'x'",
        ),
        (["--model", "own_models:small", "--input-shape", "2,6", "--steps"], "argument --steps: is for deep and net"),
        (
            ["--model", "own_models:small", "--input-shape", "2,6", "--image", "x"],
            "argument --image: is for the model net",
        ),
        (["--model", "net", "--input-shape", "2,6"], "argument --input-shape: is for a model of your own"),
    ],
)
def test_wrong_arguments_for_ones_own_model_are_one_line(
    own_models: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(arguments, capsys)


def test_python_m_export() -> None:
    done = subprocess.run([sys.executable, "-m", "export", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--measure" in done.stdout
