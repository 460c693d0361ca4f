"""The ops by name under forward-mode derivatives, torch.func, higher derivatives, checkpoints and tensor subclasses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from fastgraph.kernels.mlp import reference as mlp
from tests.reference import assert_close_to_reference, double, layers, random
from tests.test_gradients import GEOMETRY

# About torch's own code: the first forward-mode derivative in a process, and torch.func.linearize of anything.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]

REFERENCES: dict[str, Callable[..., torch.Tensor]] = {
    name: Op.named(name).reference for name in ("mlp", "conv_pool", "conv_pool_mlp")
}


def arguments(name: str, generator: torch.Generator) -> tuple[torch.Tensor, list[Any]]:
    """An input and the op's other arguments."""
    weights, biases = layers(generator, (7, 9, 4))
    chain = [weights, [biases[0], None], ["silu+tanh", "softmax"]]
    if name == "mlp":
        return random(generator, (3, 7)), chain
    convolution = [random(generator, (3, 2, 3, 3)), random(generator, (3,)), *GEOMETRY]
    return random(generator, (2, 2, 5, 16)), convolution + (chain if name == "conv_pool_mlp" else [])


Function = Callable[[torch.Tensor], torch.Tensor]


def _dual(f: Function, x: torch.Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent


def _checkpointed(f: Function, x: torch.Tensor, use_reentrant: bool) -> Any:
    x = x.clone().requires_grad_()
    checkpoint(f, x, use_reentrant=use_reentrant).square().sum().backward()
    return x.grad


def _sum(f: Function) -> Function:
    return lambda x: f(x).square().sum()


TRANSFORMS: dict[str, Callable[[Function, torch.Tensor], Any]] = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(_sum(f))(x),
    "grad": lambda f, x: torch.func.grad(_sum(f))(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](f(x)),
    "linearize": lambda f, x: torch.func.linearize(f, x)[1](x.cos()),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x.cos()])),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(_sum(f)))(torch.stack([x, x.cos()])),
    "dual": _dual,
    "functional.jvp": lambda f, x: torch.autograd.functional.jvp(f, x, x.cos()),
    "functional.jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
    "functional.hessian": lambda f, x: torch.autograd.functional.hessian(_sum(f), x),
    "checkpoint": lambda f, x: _checkpointed(f, x, False),
    "reentrant checkpoint": lambda f, x: _checkpointed(f, x, True),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", REFERENCES)
def test_transforms(name: str, transform: str, generator: torch.Generator) -> None:
    x, others = arguments(name, generator)
    op, reference = getattr(torch.ops.fastgraph, name), REFERENCES[name]
    apply = TRANSFORMS[transform]
    ours = apply(lambda x: op(x, *others), x)
    theirs = apply(lambda x: reference(x, *others), x)
    exact = apply(lambda x: reference(x, *double(others)), x.double())
    for a, b, c in zip(*map(pytree.tree_leaves, (ours, theirs, exact)), strict=True):
        assert_close_to_reference(a, b, c)
        assert c.abs().max() > 0


@pytest.mark.parametrize("name", REFERENCES)
def test_tangents_of_weights(name: str, generator: torch.Generator) -> None:
    """Where the input has none, and no gradient is wanted."""
    x, others = arguments(name, generator)
    op = getattr(torch.ops.fastgraph, name)
    with forward_ad.dual_level(), torch.no_grad():
        dual = pytree.tree_map(lambda t: forward_ad.make_dual(t, t) if isinstance(t, torch.Tensor) else t, others)
        ours = forward_ad.unpack_dual(op(x, *dual)).tangent
        theirs = forward_ad.unpack_dual(REFERENCES[name](x, *dual)).tangent
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", REFERENCES)
def test_gradcheck(name: str, generator: torch.Generator) -> None:
    """In float64, which runs the reference formula forward and the op's own backward."""
    values, spec = pytree.tree_flatten(double(arguments(name, generator)))
    places = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]

    def op(*tensors: torch.Tensor) -> torch.Tensor:
        flat = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            flat[place] = tensor
        x, others = pytree.tree_unflatten(flat, spec)
        return getattr(torch.ops.fastgraph, name)(x, *others)

    inputs = [values[i].requires_grad_() for i in places]
    assert torch.autograd.gradcheck(op, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(op, inputs)


class Wrapper(torch.Tensor):
    """Holds a tensor, and notes the operators that it is given to."""

    called: list[Any]

    @staticmethod
    def __new__(cls, held: torch.Tensor, called: list[Any], requires_grad: bool = False) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, requires_grad=requires_grad)

    def __init__(self, held: torch.Tensor, called: list[Any], requires_grad: bool = False) -> None:
        self.held, self.called = held, called

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = next(leaf.called for leaf in pytree.tree_leaves(args) if isinstance(leaf, Wrapper))
        called.append(func)
        opened = pytree.tree_map(lambda v: v.held if isinstance(v, Wrapper) else v, (args, kwargs or {}))
        result = func(*opened[0], **opened[1])
        return pytree.tree_map(lambda v: Wrapper(v, called) if isinstance(v, torch.Tensor) else v, result)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_subclass_sees_the_op(name: str, wanted: bool, generator: torch.Generator) -> None:
    x, others = arguments(name, generator)
    op = getattr(torch.ops.fastgraph, name)
    called: list[Any] = []
    wrapped = Wrapper(x, called, requires_grad=wanted)
    result = op(wrapped, *others)
    assert called == [op.default]
    assert isinstance(result, Wrapper)
    assert torch.equal(result.held, op(x, *others))
    assert result.requires_grad == wanted
    if wanted:
        result.square().sum().backward()
        plain = x.clone().requires_grad_()
        op(plain, *others).square().sum().backward()
        assert torch.equal(wrapped.grad.held, plain.grad)


def test_which_bias_is_absent_is_part_of_what_is_packed(generator: torch.Generator) -> None:
    weights, (bias, _) = layers(generator, (6, 6, 6))
    x = random(generator, (3, 6))
    for biases in ([bias, None], [None, bias]):
        expected = mlp.mlp(x, weights, biases, ["relu", "none"])
        op = Op.named("mlp")
        torch.testing.assert_close(op.target(x, weights, biases, ["relu", "none"]), expected)
        torch.testing.assert_close(Bound(op, weights, biases, ["relu", "none"])(x), expected)


def test_a_call_by_name_still_checks_what_it_was_not_given_before(generator: torch.Generator) -> None:
    """Packed weights are known to fit together; the input is not."""
    weights, biases = layers(generator, (6, 5))
    op = torch.ops.fastgraph.mlp
    op(random(generator, (3, 6)), weights, biases, ["relu"])
    with pytest.raises(RuntimeError, match=r"mlp: input: needs shape \[..., 6\], got \[3, 7\]"):
        op(random(generator, (3, 7)), weights, biases, ["relu"])
    with pytest.raises(RuntimeError, match="mlp: input: needs the dtype of weights, torch.float32, got torch.float64"):
        op(random(generator, (3, 6)).double(), weights, biases, ["relu"])
    with pytest.raises(RuntimeError, match="needs as many weights, biases and activations, got 1, 0, 1"):
        op(random(generator, (3, 6)), weights, [], ["relu"])
    assert op(random(generator, (6,)), weights, biases, ["relu"]).shape == (5,)
    assert op(random(generator, (2, 3, 6)), weights, biases, ["relu"]).shape == (2, 3, 5)
    assert op(random(generator, (6, 4)).t(), weights, biases, ["relu"]).shape == (4, 5)
