"""Sessions that run where they were asked to, and calls on tensors where they are."""

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fastgraph import export
from fastgraph.export import runtime


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "linear.onnx"
    export.to_onnx(nn.Linear(4, 3).eval(), (torch.rand(2, 4),), path)
    return path


def test_session_uses_the_threads_that_torch_has_or_that_were_asked_for(file: Path) -> None:
    torch.set_num_threads(1)
    assert export.session(file).get_session_options().intra_op_num_threads == 1
    options = export.session(file, "cpu", 2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def entries(options: onnxruntime.SessionOptions) -> list[str | None]:
    """What is set of whether idle threads spin, how long, and whether they stop behind a call."""
    names = ("intra_op.allow_spinning", "inter_op.allow_spinning", "force_spinning_stop", "intra_op.spin_duration_us")
    found: list[str | None] = []
    for name in names:
        try:
            found.append(options.get_session_config_entry(f"session.{name}"))
        except RuntimeError:  # there is no such entry
            found.append(None)
    return found


@pytest.mark.parametrize(
    ("spinning", "expected"),
    [
        ({}, ["1", "1", "0", "50"]),
        ({"spinning": 200}, ["1", "1", "0", "200"]),
        ({"spinning": 0}, ["0", "0", "0", None]),
        ({"spinning": False}, ["0", "0", "0", None]),
        ({"spinning": True}, ["1", "1", "0", None]),
        ({"spinning": "run"}, ["1", "1", "1", None]),
    ],
)
def test_idle_threads_spin_as_long_as_told(file: Path, spinning: Any, expected: list[str | None]) -> None:
    assert entries(export.session(file, **spinning).get_session_options()) == expected


def test_an_onnxruntime_that_knows_no_duration_does_not_spin(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would ignore the number, and spin as long as it does by itself."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.2")
    assert entries(export.session(file).get_session_options()) == ["0", "0", "0", None]
    monkeypatch.setattr(onnxruntime, "__version__", "2.0.0.dev1")
    assert entries(export.session(file).get_session_options()) == ["1", "1", "0", "50"]


def test_session_runs_on_the_cpu_by_default_and_takes_contents_too(file: Path) -> None:
    assert export.session(file).get_providers() == ["CPUExecutionProvider"]
    assert export.session(file.read_bytes()).get_inputs()[0].shape == ["batch", 4]


def test_session_refuses_an_unknown_provider(file: Path) -> None:
    with pytest.raises(ValueError, match="session: provider must be one of cpu, cuda; got 'tpu'"):
        export.session(file, provider="tpu")


def test_session_refuses_another_word_for_spinning(file: Path) -> None:
    for wrong in ("off", -1, 0.5, None):
        message = f"session: spinning must be a number of microseconds, False, True or 'run'; got {wrong!r}"
        with pytest.raises(ValueError, match=message):
            export.session(file, spinning=wrong)  # type: ignore[arg-type]


def test_session_refuses_no_threads(file: Path) -> None:
    with pytest.raises(ValueError, match="session: threads must be at least 1; got 0"):
        export.session(file, threads=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA can be had here")
def test_session_never_falls_back_and_says_why(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Either the build has no CUDA, or it names the library that it could not load."""
    with pytest.raises(RuntimeError) as raised:
        export.session(file, provider="cuda")
    message = str(raised.value)
    assert message.startswith("session: provider 'cuda' (CUDAExecutionProvider) cannot run here: ")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        assert "cannot open shared object file" in message
    else:
        assert "this build of onnxruntime has only" in message
    assert capfd.readouterr().err == ""


def test_a_build_without_the_provider_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="this build of onnxruntime has only CPUExecutionProvider"):
        export.session(file, "cuda")


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("\x1b[1;31m2026 [E:x, y.cc:1 f] Failed to load l.so with error: c.so: not there\n\x1b[m", "c.so: not there"),
        ("2026 [W:onnxruntime:Default, state.cc:1295 Create] Failed to create it. Do.\n", "Failed to create it. Do."),
        ("", "onnxruntime gave no reason"),
    ],
)
def test_the_reason_is_found_in_the_log(log: str, reason: str) -> None:
    assert runtime._reason(log) == reason


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_CUDA)])
def test_binding_calls_on_tensors_where_they_are(file: Path, device: str) -> None:
    bound = export.Binding(export.session(file, device))
    x = torch.rand(5, 8, device=device)[:, ::2]
    (y,) = bound(x)
    assert y.device == x.device
    (expected,) = export.session(file).run(None, {"input": x.cpu().contiguous().numpy()})
    torch.testing.assert_close(y.cpu(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    kept = y.clone()
    assert bound(torch.zeros(7, 4, device=device))[0].shape == (7, 3)
    assert torch.equal(y, kept), "a later call changed an earlier result"


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [0, 3])
def test_binding_takes_every_dtype(dtype: torch.dtype, rows: int) -> None:
    kind = {torch.float64: "double"}.get(dtype, str(dtype).removeprefix("torch."))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 22]> g ({kind}[N] x) => ({kind}[N] y) {{ y = Identity(x) }}'
    )
    bound = export.Binding(export.session(model.SerializeToString()))
    x = torch.tensor([1, 0, 1]).to(dtype)[:rows]
    (y,) = bound(x)
    assert y.dtype is dtype
    assert torch.equal(y, x)


def test_cuda_follows_torch_in_device_and_precision() -> None:
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert runtime._cuda_options() == {"device_id": str(device), "use_tf32": "0"}
        torch.set_float32_matmul_precision("high")
        assert runtime._cuda_options()["use_tf32"] == "1"
    finally:
        torch.set_float32_matmul_precision(before)


def test_binding_refuses_what_does_not_fit(file: Path) -> None:
    bound = export.Binding(export.session(file))
    with pytest.raises(TypeError, match=r"Binding: needs 1 tensor\(s\) on one device; got 2 \(cpu, cpu\)"):
        bound(torch.ones(1, 4), torch.ones(1, 4))
