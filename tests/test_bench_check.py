"""What the bench refuses to time: the tolerance, the complaint, the accuracy."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastgraph.bench.backends import Setting
from fastgraph.bench.check import accuracy, complaint, mean_error, reference
from tests.bench_samples import build_small

FP32 = Setting()


def test_tolerance_is_derived_from_eagers_own_error() -> None:
    built = build_small(4)
    truth = reference(built, FP32)
    with torch.inference_mode():
        eager = built.model(built.x)
    weight, bias = (value.double() for value in built.model.state_dict().values())
    exact = torch.softmax(built.x.double() @ weight.T + bias, dim=1)
    torch.testing.assert_close(truth.output, exact, rtol=0, atol=1e-15)
    assert truth.eager_error == pytest.approx((eager.double() - exact).abs().max().item(), rel=1e-6)
    largest = exact.abs().max().item()
    assert truth.tolerance == pytest.approx(2 * truth.eager_error + 8 * torch.finfo(torch.float32).eps * largest)
    assert complaint(eager, "float32", truth, FP32) is None


def test_in_bf16_eager_in_bf16_is_the_measure() -> None:
    built = build_small(4)
    truth, in_bf16 = reference(built, FP32), reference(built, Setting("bf16"))
    torch.testing.assert_close(in_bf16.output, truth.output, rtol=0, atol=0)
    assert in_bf16.tolerance > 1000 * truth.tolerance
    assert complaint(truth.output.bfloat16().float(), "bfloat16", in_bf16, Setting("bf16")) is None
    assert complaint(truth.output.bfloat16().float(), "bfloat16", truth, FP32) is not None
    assert "is over the tolerance" in str(complaint(truth.output.float() + 0.1, "float32", in_bf16, Setting("bf16")))


def test_reference_in_parts_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reference(build_small(4), FP32)
    monkeypatch.setattr("fastgraph.bench.check.VALUES_AT_ONCE", 6)
    torch.testing.assert_close(reference(build_small(4), FP32).output, whole.output, rtol=0, atol=1e-15)


def put(row: int, column: int, value: float) -> Callable[[Tensor], Tensor]:
    return lambda y: y.index_put((torch.tensor(row), torch.tensor(column)), torch.tensor(value))


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (lambda y: put(1, 2, y[1, 2].item() + 1e-5)(y), "its error 1.0e-05 is over the tolerance"),
        (lambda y: y.roll(1, 0), "is over the tolerance"),
        (put(0, 0, float("nan")), "gives NaN or infinity"),
        (lambda y: y / 0, "gives NaN or infinity"),
        (lambda y: y[:-1], "gives float32 [3, 3], where float32 [4, 3] is needed"),
    ],
    ids=["one value", "rows moved", "nan", "inf", "row missing"],
)
def test_a_wrong_output_is_named(corrupt: Callable[[Tensor], Tensor], reason: str) -> None:
    built = build_small(4)
    said = complaint(corrupt(built.model(built.x).detach()), "float32", reference(built, FP32), FP32)
    assert said is not None
    assert reason in said


def test_a_wrong_dtype_is_named() -> None:
    built = build_small(4)
    said = complaint(built.model(built.x), "float64", reference(built, FP32), FP32)
    assert said == "gives float64 [4, 3], where float32 [4, 3] is needed"


def test_mean_error_is_over_all_values() -> None:
    exact = torch.zeros(2, 2, dtype=torch.float64)
    assert mean_error(torch.tensor([[0.0, 1.0], [0.0, -3.0]]), exact) == 1


def test_accuracy_counts_every_digit_once_in_full_batches() -> None:
    built, seen = build_small(4), []

    def call(x: Tensor) -> Tensor:
        seen.append(len(x))
        y = built.model(x)
        return y.flip(1) if len(seen) == 3 else y  # wrong in the last batch: two digits and two fillers

    assert built.held_out is not None
    images, labels = built.held_out
    flipped = built.model(images[8:]).flip(1).argmax(dim=1)
    assert accuracy(call, built.held_out, 4) == pytest.approx((8 + (flipped == labels[8:]).sum().item()) / 10)
    assert seen == [4, 4, 4]


def test_accuracy_needs_digits() -> None:
    assert accuracy(lambda x: x, None, 4) is None
