"""Timing on CUDA as far as it can be tested without one: the order of events, flushes and waits; and with one."""

import pytest
import torch
from torch import nn

from fastgraph.bench import cases
from fastgraph.bench.backends import BACKENDS, Setting
from fastgraph.bench.backends.onnxruntime_plain import OnnxruntimePlain, cuda_options
from fastgraph.bench.plan import QUICK
from fastgraph.bench.process import cuda
from fastgraph.bench.session import session


class Stream:
    """A device that works off what is put to it, on a clock of its own in milliseconds."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, ""

    def work(self, name: str, milliseconds: float) -> None:
        self.log += name
        self.now += milliseconds

    def event(self) -> "Mark":
        return Mark(self)


class Mark:
    """An event in the stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.at = stream, float("nan")

    def record(self) -> None:
        self.stream.log += "|"
        self.at = self.stream.now

    def elapsed_time(self, end: "Mark") -> float:
        return end.at - self.at


@pytest.mark.parametrize(("cold", "log"), [(False, "c.|c||c|."), (True, "c.f|c|f|c|.")])
def test_events_stand_right_around_each_call(cold: bool, log: str) -> None:
    stream = Stream()
    flush = (lambda: stream.work("f", 50.0)) if cold else None
    seconds = cuda.block(
        lambda: stream.work("c", 2.0), 2, flush, stream.event, synchronize=lambda: stream.work(".", 0.0)
    )
    assert seconds.tolist() == pytest.approx([0.002, 0.002])  # the flush is not in it
    assert stream.log == log


def test_settings_say_what_they_are() -> None:
    assert str(Setting("bf16", 2)) == "bf16, cpu, 2 threads"
    assert str(Setting(device="cuda")) == "fp32, cuda, warm L2, plain launches, copies not included"
    graph = Setting(device="cuda", cache="cold", launch="graph", copies=True)
    assert str(graph) == "fp32, cuda, cold L2, one CUDA graph, copies included"


@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("openvino", Setting(device="cuda"), "OpenVINO has no CUDA device"),
        ("onnxruntime", Setting(device="cuda", launch="graph"), "cannot be captured"),
        ("onnxruntime", Setting("bf16"), "no bf16 products"),
        ("compile-max", Setting(device="cuda", launch="graph"), "launches a CUDA graph of its own"),
        ("fastgraph-inductor", Setting(device="cuda", launch="graph"), "launches a CUDA graph of its own"),
    ],
)
def test_what_a_backend_cannot_do_has_a_reason(name: str, setting: Setting, reason: str) -> None:
    assert reason in (BACKENDS[name]().refusal(setting) or "")
    assert BACKENDS[name]().refusal(Setting()) is None


def test_fp32_is_not_tf32() -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        cuda.ieee_fp32()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_output_of_a_bound_run_goes_with_the_batch() -> None:
    backend = OnnxruntimePlain()
    backend._like, backend._batch = torch.zeros(2 * 5728, 1), 2
    assert backend._output_shape(torch.zeros(3, 3, 720, 480)) == (3 * 5728, 1)


ON_CUDA = [
    Setting(device="cuda", launch=launch, cache=cache) for launch, cache in (("plain", "cold"), ("graph", "warm"))
]


class OwnStream:
    """What is read of ``torch.cuda.Stream``."""

    cuda_stream, device = 4711, torch.device("cuda", 1)


def test_onnxruntime_is_given_a_stream_of_its_own() -> None:
    assert cuda_options(OwnStream()) == {"device_id": "1", "user_compute_stream": "4711", "use_tf32": "0"}


class Recorded:
    """Stands for streams and session, and writes down what they are asked to do."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "Recorded") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def io_binding(self) -> "Recorded":
        return self

    def bind_input(self, *arguments: object) -> None:
        self.log.append("bound")

    bind_output = bind_input

    def run_with_iobinding(self, binding: object) -> None:
        self.log.append("runs")


def test_a_bound_run_is_in_its_place_among_pytorchs_work(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Recorded("PyTorch", log))
    backend = OnnxruntimePlain()
    backend._like, backend._batch, backend._input, backend._output = torch.zeros(2, 3), 2, "x", "y"
    backend._session, backend._stream = Recorded("session", log), Recorded("onnxruntime", log)
    assert backend._bound(torch.zeros(4, 5)).shape == (4, 3)
    assert log == ["bound", "bound", "onnxruntime waits for PyTorch", "runs", "PyTorch waits for onnxruntime"]


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, setting) for name, one in BACKENDS.items() for setting in ON_CUDA if one().refusal(setting) is None],
    ids=str,
)
def test_every_backend_is_right_and_timed(name: str, setting: Setting) -> None:
    """In a process of its own, as in the bench."""
    with session([name], setting) as running:
        (row,) = running.run(cases.deep([16])[0], QUICK).rows
    assert row.status == "ok", row.reason
    assert row.timing is not None
    assert row.timing.median_s > 0


@pytest.mark.cuda
def test_a_graph_gives_what_the_call_gives() -> None:
    model, x = nn.Linear(64, 32).cuda(), torch.randn(8, 64, device="cuda")
    with torch.inference_mode():
        torch.testing.assert_close(cuda.captured(lambda: model(x))(), model(x))


@pytest.mark.cuda
def test_copies_begin_and_end_in_the_hosts_memory() -> None:
    model, x = nn.Linear(64, 32).cuda(), torch.randn(8, 64)
    with torch.inference_mode():
        output = cuda.with_copies(model, x, torch.device("cuda"))()
        assert output.is_cpu
        torch.testing.assert_close(output, model(x.cuda()).cpu())


@pytest.mark.cuda
def test_a_cold_cache_is_slower_than_a_warm_one() -> None:
    x = torch.randn(1 << 20, device="cuda")
    flush = cuda.flusher(x.device)
    warm = float(torch.tensor(cuda.block(lambda: x.sum(), 200)).median())
    assert float(torch.tensor(cuda.block(lambda: x.sum(), 200, flush)).median()) > warm
