"""The record of an op: what making one registers, what is remembered of inputs, and an op bound to its constants."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from fastgraph.kernels import native
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.checks import require
from fastgraph.kernels.library import Op
from tests.gpu import on_cuda, stand_in_gpu
from tests.reference import layers, random

needs_kernels = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")


class ScaledKernel:
    """What a kernel is to its op; a factor of 0 counts as one that it does not take."""

    def __init__(self, scale: torch.Tensor) -> None:
        self.scale, self.calls = scale.clone(), 0

    def run(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], threads: int) -> None:
        self.calls += 1
        torch.mul(inputs[0], self.scale, out=outputs[0])


def run(kernel: ScaledKernel, input: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    output = input.new_empty(size)
    kernel.run([input], [output], 1)
    return output


def check(input: torch.Tensor, scale: torch.Tensor) -> None:
    checked.append(tuple(input.shape))
    require(input.dim() == 2, "scaled: input: needs two dimensions, got {}", input.shape)


checked: list[tuple[int, ...]] = []


@pytest.fixture(scope="module")
def scaled() -> Op:
    """An op of this file alone: all that it takes is a record."""
    return Op(
        "scaled",
        "(Tensor input, Tensor scale) -> Tensor",
        check=check,
        check_constants=lambda scale: None,
        output_shape=lambda input, scale: tuple(input.shape),
        reference=lambda input, scale: input * scale,
        constants=lambda scale: ([scale], ()),
        pack=lambda tensors: ScaledKernel(tensors[0]) if tensors[0] != 0 else None,
        run=run,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        backward=lambda ctx, grad: (grad * ctx.saved_tensors[1], (grad * ctx.saved_tensors[0]).sum()),
        takes=lambda input, scale: input.shape[1] != 3,
    )


def test_a_record_is_found_by_name_and_by_target(scaled: Op) -> None:
    for name in ("mlp", "conv_pool", "conv_pool_mlp", "scaled"):
        op = Op.named(name)
        assert op.target is getattr(torch.ops.fastgraph, name).default
        assert Op.of(op.target) is op
    for other in (torch.ops.aten.relu.default, torch.relu, "mlp", None):
        assert Op.of(other) is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, of dual tensors
def test_a_record_is_all_that_an_op_takes(scaled: Op, generator: torch.Generator) -> None:
    x, scale = random(generator, (4, 5)).requires_grad_(), torch.tensor(1.5, requires_grad=True)
    torch.library.opcheck(scaled.target, (x, scale))
    result = scaled.target(x, scale)
    assert torch.equal(result, x * 1.5)
    assert result.grad_fn.name() == "ScaledBackward"
    ours = torch.autograd.grad(result.sum(), (x, scale))
    assert torch.equal(ours[0], torch.full((4, 5), 1.5))
    torch.testing.assert_close(ours[1], x.detach().sum())
    assert torch.equal(torch.vmap(lambda row: scaled.target(row, scale))(x[None]), result[None])
    with FakeTensorMode() as mode:
        assert scaled.target(mode.from_tensor(x), mode.from_tensor(scale)).shape == (4, 5)
    with forward_ad.dual_level(), torch.no_grad():
        assert torch.equal(forward_ad.unpack_dual(scaled.target(forward_ad.make_dual(x, x), scale)).tangent, x * 1.5)
    with pytest.raises(RuntimeError, match=r"scaled: input: needs two dimensions, got \[5\]"):
        scaled.target(x[0], scale)


def test_an_op_without_a_kernel_on_cuda_runs_through_aten(scaled: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with stand_in_gpu(monkeypatch):
        x, scale = on_cuda((torch.ones(2, 4), torch.tensor(1.5)))
        assert scaled.running(x, scale) == ("scaled (ATen)", False, "it has no kernel on CUDA")
        assert scaled.target(x, scale).shape == (2, 4)


@needs_kernels
def test_a_form_of_inputs_is_checked_once(scaled: Op) -> None:
    scale, x = torch.tensor(2.0), torch.ones(2, 4)
    kernel = Bound(scaled, scale).kernel
    checked.clear()
    for _ in range(3):
        assert scaled.target(x, scale).sum() == 16
        assert scaled.target(x[:1], scale).sum() == 8
    assert checked == [(2, 4), (1, 4)]
    bound = Bound(scaled, scale)
    assert bound.kernel is kernel  # packed once
    assert bound(x).sum() == 16
    assert checked == [(2, 4), (1, 4)]
    assert kernel.calls == 7
    scale.mul_(2)
    assert scaled.target(x, scale).sum() == 32
    assert len(checked) > 2


@needs_kernels
def test_what_the_kernel_does_not_take(scaled: Op) -> None:
    """A shape, weights, and values that are not in memory as they are."""
    scale, zero = torch.tensor(3.0), torch.tensor(0.0)
    bound = Bound(scaled, scale)
    assert torch.equal(bound(torch.ones(2, 3)), torch.full((2, 3), 3.0))
    assert bound.output_size(torch.ones(2, 3)) is None
    assert bound.kernel.calls == 0
    assert bound.output_size(torch.ones(2, 4)) == (2, 4)
    assert bound.output_size(torch._neg_view(torch.ones(2, 4))) is None
    assert torch.equal(bound(torch._neg_view(torch.ones(2, 4))), torch.full((2, 4), -3.0))
    assert bound.output_size(torch.ones(2, 4).double()) is None
    assert Bound(scaled, zero).kernel is None
    assert torch.equal(Bound(scaled, zero)(torch.ones(2, 4)), torch.zeros(2, 4))
    assert Bound(scaled, scale.double()).kernel is None


@needs_kernels
def test_lists_that_do_not_match_are_an_error_after_a_call_with_the_same_tensors(generator: torch.Generator) -> None:
    """A square weight and its bias in one list of weights are the same tensors in the same order."""
    (weight,), (bias,) = layers(generator, (6, 6))
    op, x = Op.named("mlp").target, random(generator, (2, 6))
    op(x, [weight], [bias], ["relu"])
    with pytest.raises(RuntimeError, match="needs as many weights, biases and activations, got 2, 0, 1"):
        op(x, [weight, bias], [], ["relu"])


@needs_kernels
def test_forms_are_limited(scaled: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgraph.kernels.library._MAX_FORMS", 3)
    scale = torch.tensor(5.0)
    packing: Any = scaled.packing((scale,))
    for rows in range(1, 9):
        assert scaled.target(torch.ones(rows, 2), scale).sum() == 10 * rows
    assert len(packing.sizes) == 3
