"""Ceilings, the work of a case, what limits it, and the modelled floors of a GPU, against counts done by hand."""

from pathlib import Path

import pytest

from fastgraph.bench import cases
from fastgraph.bench.backends import Setting
from fastgraph.bench.ceilings.caches import MIB, cache_bytes, read_sizes
from fastgraph.bench.ceilings.limit import limit
from fastgraph.bench.ceilings.measured import CEILINGS, MeasuredCeilings
from fastgraph.bench.ceilings.roofline import GPUS, floors, variants
from fastgraph.bench.ceilings.work import Work, work_of
from fastgraph.kernels import native

DEEP_FLOPS = 2 * (784 * 512 + 512 * 256 + 256 * 10)
DEEP_WEIGHTS = 784 * 512 + 512 * 256 + 256 * 10 + 512 + 256 + 10
NET_FLOPS = 2 * (16 * 718 * 478 * 27 + 5728 * (238 * 120 + 120))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_work_is_counted_as_by_hand(dtype: str) -> None:
    size = 4 if dtype == "fp32" else 2
    (deep,) = cases.deep([16])
    assert work_of(deep.build(), Setting(dtype)) == Work(
        16 * DEEP_FLOPS, size * DEEP_WEIGHTS, 16 * 784 * 4, 16 * 10 * 4
    )
    (net,) = cases.net([1])
    work = work_of(net.build(), Setting(dtype))
    assert work is not None
    assert (work.flops, work.output_bytes) == (NET_FLOPS, 5728 * 4)


def test_modelled_kernels_are_those_of_the_model() -> None:
    (net,) = cases.net([1])
    found = variants(net.build(), Setting("bf16").torch_dtype)
    assert {name: len(kernels) for name, kernels in found.items()} == {"eager": 9, "per layer": 3, "whole": 1}
    assert {sum(k.flops for k in kernels) for kernels in found.values()} == {NET_FLOPS}
    pooled, image = 16 * 358 * 238, 3 * 720 * 480
    first = found["per layer"][0]
    assert (first.read, first.written) == (2 * (image + 16 * 27 + 16), 2 * pooled)
    assert found["whole"][0].bytes == 2 * (image + 16 * 27 + 16 + 238 * 120 + 120 + 120 + 1 + 5728)
    assert found["eager"][2].written == (2 + 8) * pooled  # eager's pool writes its indices too


@pytest.mark.parametrize(
    ("dtype", "per_layer_us", "whole_us"), [("bf16", 3.1, 0.64), ("fp32", 10.1, 9.3)], ids=["bf16", "fp32"]
)
def test_floors_of_net_on_an_h100(dtype: str, per_layer_us: float, whole_us: float) -> None:
    """The figures that were worked out by hand before there was a model."""
    (net,) = cases.net([1])
    eager, per_layer, whole = floors(net.name, net.build(), "H100", dtype)
    assert per_layer.floor_s * 1e6 == pytest.approx(per_layer_us, rel=0.02)
    assert whole.floor_s * 1e6 == pytest.approx(whole_us, rel=0.02)
    assert eager.floor_s > per_layer.floor_s > whole.floor_s
    assert eager.gpu == "H100 SXM"


def test_every_gpu_has_peaks_and_a_source() -> None:
    assert list(GPUS) == ["A100", "H100", "H200", "B200", "RTX4090", "L4"]
    for gpu in GPUS.values():
        assert gpu.flops["bf16"] >= gpu.flops["fp32"] > 1e13
        assert 1e11 < gpu.bytes_per_s < 1e13
        assert "NVIDIA" in gpu.source


CACHES = {"L2": 2 * MIB, "L3": 32 * MIB}
RATES = {"fma": [1e11, 2e11], "L2": [1e11] * 2, "L3": [5e10] * 2, "memory": [1e10] * 2, "launch": [1e-6] * 2}


@pytest.mark.parametrize(
    ("work", "binding", "level", "floor_s"),
    [
        (Work(10**9, 10**6, 0, 0), "compute", "L2", 7.5e-3),  # median of 10 and 5 ms
        (Work(10**6, 3 * 10**6, 0, 0), "memory", "L3", 6e-5),
        (Work(10**6, 10**6, 0, 10**8), "memory", "memory", 1.01e-2),
        (Work(10, 10, 10, 10), "launch", "L2", 1e-6),
    ],
)
def test_the_largest_floor_binds(work: Work, binding: str, level: str, floor_s: float) -> None:
    found = limit([2e-2, 1e-2], work, RATES, CACHES)
    assert found is not None
    assert (found.binding, found.level, found.floor_s) == (binding, level, pytest.approx(floor_s))


def test_share_is_taken_round_by_round() -> None:
    """The machine was twice as fast in the second round, and so were we: the share is the same in both."""
    found = limit([2e-2, 1e-2], Work(10**9, 1, 0, 0), RATES, CACHES)
    assert found is not None
    assert found.share == pytest.approx(0.5)


def test_bf16_counts_against_its_own_ceiling_where_there_is_one() -> None:
    found = limit(
        [1e-2], Work(10**9, 1, 0, 0), {name: rates[:1] for name, rates in RATES.items()} | {"bf16": [4e11]}, CACHES
    )
    assert found is not None
    assert found.floor_s == pytest.approx(2.5e-3)


def test_without_ceilings_there_is_no_limit() -> None:
    assert limit([1e-2], Work(1, 1, 1, 1), {}, CACHES) is None


@pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")
class TestCeilings:
    def test_each_is_measured_and_plausible(self) -> None:
        names = tuple(CEILINGS)
        found = MeasuredCeilings(1).block(names, 0.005, weight_bytes=2_000_000)
        assert set(found) in (set(names), set(names) - {"bf16"})  # where the machine has no bf16 products
        assert 1e8 < found["fma"] < 1e12
        assert all(1e8 < found[name] < 1e12 for name in ("L2", "L3", "memory", "weights"))
        assert 1e-8 < found["launch"] < 1e-3

    def test_two_threads_do_more_than_none(self) -> None:
        assert MeasuredCeilings(2).block(("fma",), 0.005)["fma"] > 0

    def test_every_instruction_set_has_its_own(self, isa: str) -> None:
        module = native.kernels()
        assert module is not None
        ceiling = module.Ceiling(1)
        assert ceiling.fma_f32(0.002) > 0
        assert ceiling.read(1 << 16, 0.002) > 0
        assert (ceiling.dot_bf16(0.002) > 0) == (isa == "avx512_bf16")

    def test_vectors_beat_scalars(self) -> None:
        module = native.kernels()
        assert module is not None
        if module.isa() == "scalar":
            pytest.skip("no vector instructions here")
        before, ceiling = module.isa(), module.Ceiling(1)
        vector = ceiling.fma_f32(0.005)
        try:
            module.select_isa("scalar")
            assert vector > 4 * ceiling.fma_f32(0.005)
        finally:
            module.select_isa(before)


def test_cache_sizes_are_read(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert [cache_bytes(level, 7, tmp_path) for level in (1, 2, 3, 4)] == [32 * 1024, MIB, 32 * MIB, 7]


def test_what_is_read_fits_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgraph.bench.ceilings.caches.cache_bytes", lambda level, _: {2: MIB, 3: 32 * MIB}[level])
    sizes = read_sizes(2)
    assert sizes["L2"] < MIB < sizes["L3"]
    assert 2 * sizes["L3"] < 32 * MIB < 2 * sizes["memory"]
