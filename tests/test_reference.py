"""The comparison itself: it must notice corrupted results."""

import pytest
import torch

from tests.reference import LastProduct, assert_close_to_reference, check_op


@pytest.fixture
def outputs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    reference = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    return reference.float(), reference


def test_accepts_eager_itself(outputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    eager, reference = outputs
    assert_close_to_reference(eager.clone(), eager, reference)


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda t: t.index_put((torch.tensor(3), torch.tensor(2)), torch.tensor(9.0)),
        lambda t: t * (1 + 1e-5),
        lambda t: t.roll(1, 0),
        lambda t: t.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("nan"))),
        lambda t: t.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("inf"))),
        lambda t: t[:-1],
        lambda t: t.double(),
    ],
    ids=["one value", "scale", "rows moved", "nan", "inf", "row missing", "dtype"],
)
def test_rejects_a_corrupted_output(corrupt, outputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    eager, reference = outputs
    with pytest.raises(AssertionError):
        assert_close_to_reference(corrupt(eager.clone()), eager, reference)


def test_nan_and_infinities_have_to_be_where_the_reference_has_them() -> None:
    reference = torch.tensor([1.0, float("nan"), float("inf"), float("-inf")], dtype=torch.float64)
    assert_close_to_reference(reference.float(), reference.float(), reference)
    for wrong in ([1.0, 2.0, float("inf"), float("-inf")], [1.0, float("nan"), float("-inf"), float("-inf")]):
        with pytest.raises(AssertionError):
            assert_close_to_reference(torch.tensor(wrong), reference.float(), reference)


def test_terms_that_cancel_count_with_their_magnitude() -> None:
    """In check_op: another order of the sums is as right; an error of the size of a term is not."""
    x, weight = torch.tensor([[1000.0, -999.0, 1e-3, -1.0]]), torch.ones(1, 4)
    reference = torch.nn.functional.linear

    def reordered(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ((x[:, 2] + x[:, 0]) + (x[:, 3] + x[:, 1]))[:, None]

    check_op(reordered, reference, x, weight)
    with pytest.raises(AssertionError):
        check_op(lambda x, weight: reordered(x, weight) + 2.5e-3, reference, x, weight)


def test_only_the_last_product_counts() -> None:
    x, weight, bias = torch.full((1, 2), 1000.0), torch.eye(2), torch.tensor([1.0, -2.0])
    with LastProduct() as last:
        torch.nn.functional.linear(torch.sigmoid(torch.nn.functional.linear(x, weight)), weight, bias)
    assert last.sums == 3
