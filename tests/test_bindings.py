"""Torch's own functions in place of operators: the same results, by order and by name."""

from typing import Any

import pytest
import torch

from fastgraph.bindings import BINDINGS, aten

x, y, image = torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 3, 8, 8)
sequence, square = torch.randn(2, 5, 4), torch.randn(4, 4)
long = torch.tensor([0, 2])
gates = [torch.randn(12, 4), torch.randn(12, 4), torch.randn(12), torch.randn(12)]
lstm_gates = [torch.randn(16, 4), torch.randn(16, 4), torch.randn(16), torch.randn(16)]
statistics = [torch.rand(3) for _ in range(4)]
state = torch.zeros(1, 2, 4)

CALLS: dict[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    aten.adaptive_avg_pool2d.default: [((image, [2, 3]), {})],
    aten.add.Tensor: [((x, y), {"alpha": 2}), ((x, 2), {}), ((long, 0.5), {}), ((long, True), {})],
    aten.avg_pool2d.default: [((image, [2, 2], [2, 1], [1, 0], True, False, 3), {}), ((image, [2]), {})],
    aten.batch_norm.default: [
        ((image, *statistics, False, 0.1, 1e-5, True), {}),
        ((image, None, None, *statistics[:2], False, 0.1, 1e-5, False), {}),
    ],
    aten.bmm.default: [((sequence, sequence.mT), {})],
    aten.cat.default: [(([x, y], -1), {}), (([x, y],), {})],
    aten.conv1d.default: [
        ((sequence, torch.randn(6, 5, 3), None, [1], [1], [1], 1), {}),
        ((sequence, torch.randn(6, 5, 1)), {}),
    ],
    aten.conv2d.default: [
        ((image, torch.randn(6, 1, 3, 3), torch.randn(6), [2, 1], [1, 0], [1, 1], 3), {}),
        ((image, torch.randn(2, 3, 3, 3)), {}),
    ],
    aten.div.Tensor: [((x, y), {}), ((x, 3), {}), ((long, 2), {})],
    aten.embedding.default: [((square, long), {}), ((square, long, 1, False, False), {})],
    aten.flatten.using_ints: [((image, 1), {}), ((image, 1, 2), {}), ((image,), {})],
    aten.gelu.default: [((x,), {}), ((x,), {"approximate": "tanh"})],
    aten.gru.input: [((sequence, state, gates, True, 1, 0.0, False, False, True), {})],
    aten.hardswish.default: [((x,), {})],
    aten.layer_norm.default: [((x, [4], y[0], y[1], 1e-3, True), {}), ((x, [4]), {})],
    aten.linear.default: [((x, square), {}), ((x, square, y[0]), {})],
    aten.lstm.input: [((sequence, [state, state], lstm_gates, True, 1, 0.0, False, False, True), {})],
    aten.matmul.default: [((x, square), {}), ((sequence, square), {}), ((x[0], y[0]), {})],
    aten.max_pool2d.default: [((image, [2, 3], [2, 1], [1, 1], [1, 1], True), {}), ((image, [2]), {})],
    aten.mul.Tensor: [((x, y), {}), ((x, 3), {}), ((long, 0.5), {})],
    aten.permute.default: [((image, [0, 2, 3, 1]), {})],
    aten.relu.default: [((x,), {})],
    aten.relu_.default: [((x,), {})],
    aten.reshape.default: [((image, [2, -1]), {})],
    aten.scaled_dot_product_attention.default: [
        ((sequence, sequence, sequence), {}),
        ((sequence, sequence, sequence, torch.randn(5, 5), 0.0, False), {"scale": 0.3, "enable_gqa": False}),
        ((sequence, sequence, sequence, None, 0.0, True), {}),
    ],
    aten.select.int: [((image, 1, -1), {})],
    aten.sigmoid.default: [((x,), {})],
    aten.silu.default: [((x,), {})],
    aten.softmax.int: [((x, -1), {}), ((x, 0), {"dtype": torch.float64}), ((x, 0, torch.float64), {})],
    aten.sub.Tensor: [((x, y), {"alpha": 2}), ((x, 2), {}), ((long, 0.5), {})],
    aten.sym_size.int: [((image, 1), {}), ((image, -1), {})],
    aten.tanh.default: [((x,), {})],
    aten.transpose.int: [((image, 1, -1), {})],
    aten.unsqueeze.default: [((x, 1), {})],
    aten.view.default: [((image, [6, -1]), {})],
    aten.zeros.default: [
        (([2, 3],), {"dtype": torch.float64, "device": torch.device("cpu"), "pin_memory": False}),
        (([],), {}),
    ],
}


def test_every_binding_is_called_here() -> None:
    assert set(CALLS) == set(BINDINGS)


@pytest.mark.parametrize("operator", CALLS, ids=str)
def test_the_same_results(operator: Any) -> None:
    def copied(args: tuple[Any, ...]) -> list[Any]:
        return [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]

    for args, kwargs in CALLS[operator]:
        expected, actual = operator(*copied(args), **kwargs), BINDINGS[operator](*copied(args), **kwargs)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("operator", CALLS, ids=str)
def test_keywords_are_the_schemas(operator: Any) -> None:
    """A graph may hold any argument by its name."""
    names = [argument.name for argument in operator._schema.arguments]
    for args, kwargs in CALLS[operator]:
        first = args[0].clone() if isinstance(args[0], torch.Tensor) else args[0]
        given = {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}
        torch.testing.assert_close(BINDINGS[operator](first, **given), operator(first, **given), rtol=0, atol=0)
