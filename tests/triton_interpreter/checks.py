"""Checks of the kernels: the tests run them on the kernels as they are, the mutation test on broken ones."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

import fastgraph.kernels.conv_pool.reference as conv_pool_reference
import fastgraph.kernels.conv_pool_mlp.reference as conv_pool_mlp_reference
import fastgraph.kernels.mlp.reference as mlp_reference
from fastgraph.kernels.conv_pool import cuda as conv_pool
from fastgraph.kernels.conv_pool.op import Geometry
from fastgraph.kernels.conv_pool_mlp import cuda as conv_pool_mlp
from fastgraph.kernels.cuda.architecture import ARCHITECTURES
from fastgraph.kernels.cuda.target import Target
from fastgraph.kernels.mlp import cuda as mlp
from tests.reference import assert_close_to_reference, double, layers, random
from tests.triton_interpreter.guard import convert, guarded_outputs, in_nan, rows_in_nan

KINDS = {
    "ieee": (torch.float32, "ieee"),
    "tf32x3": (torch.float32, "tf32x3"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}


def at_once(kernel: Any) -> Any:
    """Launches in the interpreter."""
    return kernel


class Launcher:
    """Launches in the interpreter, and keeps what with."""

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []

    def __call__(self, kernel: Any) -> Any:
        launcher = self

        class Launch:
            def __getitem__(self, grid: Any) -> Callable[..., Any]:
                return lambda **options: (launcher.launched.append(options), kernel[grid](**options))

        return Launch()


def target(
    kind: str = "ieee", architecture: str = "sm_80", processors: int = 108, launch: Callable[[Any], Any] = at_once
) -> Target:
    """A target for the interpreter. On few processors strips are long."""
    return Target(ARCHITECTURES[architecture], KINDS[kind][1], processors, launch)


def generator(seed: int = 7) -> torch.Generator:
    """Seeded."""
    return torch.Generator().manual_seed(seed)


def default_layers(source: torch.Generator, sizes: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """As nn.Linear initialises: uniform within 1 / sqrt(in_features)."""
    uniform = lambda shape, limit: (2 * torch.rand(shape, generator=source) - 1) * limit  # noqa: E731
    weights = [uniform((o, i), i**-0.5) for i, o in pairwise(sizes)]
    return weights, [uniform((o,), i**-0.5) for i, o in pairwise(sizes)]


def tf32(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 values rounded to tf32's ten mantissa bits; infinities and NaN as they are."""
    rounded = (tensor.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)
    return torch.where(tensor.isfinite(), rounded, tensor)


def mlp_eager(kind: str, x: torch.Tensor, weights: Any, biases: Any, activations: Sequence[str]) -> torch.Tensor:
    """What eager gives in the kernel's precision: its error is the measure."""
    if kind != "tf32":
        return mlp_reference.mlp(x, weights, biases, activations)
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        x = F.linear(tf32(x), tf32(weight), bias)
        x = mlp_reference.mlp(x, [torch.eye(x.shape[-1])], [None], [activation])
    return x


def check_mlp(
    sizes: Sequence[int],
    activations: Sequence[str],
    rows: int,
    kind: str = "ieee",
    plan: str = "layers",
    architecture: str = "sm_80",
    default_init: bool = False,
    bias: bool = True,
    x: torch.Tensor | None = None,
    launch: Callable[[Any], Any] = at_once,
) -> torch.Tensor:
    """A chain against float64: as separate layers or in one launch, inputs in NaN, outputs between sentinels."""
    source = generator()
    weights, biases = (default_layers if default_init else layers)(source, sizes)
    if not bias:
        biases = [None] * len(biases)
    x = random(source, (rows, sizes[0])) if x is None else x
    dtype = KINDS[kind][0]
    x, weights, biases = convert((x, weights, biases), lambda t: t.to(dtype))
    exact = mlp_reference.mlp(*double((x, weights, biases)), activations)
    eager = mlp_eager(kind, x, weights, biases, activations)
    guarded = (rows_in_nan if architecture == "sm_80" else in_nan)(x), *convert((weights, biases), in_nan)
    with guarded_outputs():
        if plan == "whole":
            actual = mlp.whole(*guarded, activations, target(kind, architecture))
        else:
            actual = mlp.run(*guarded, activations, target=target(kind, architecture, launch=launch))
    assert_close_to_reference(actual, eager, exact)
    return actual


def conv_arguments(
    source: torch.Generator,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    *geometry: Any,
    batch: int = 2,
) -> tuple[Any, ...]:
    """x, weight, bias, geometry."""
    inputs, outputs = channels
    weight = random(source, (outputs, inputs, *kernel), (inputs * kernel[0] * kernel[1]) ** -0.5)
    sizes = [list(g) if isinstance(g, tuple) else g for g in geometry]
    return random(source, (batch, inputs, *size)), weight, random(source, (outputs,)), *sizes


# (channels), (H, W), kernel, stride, padding, dilation, pool kernel, pool stride, pool padding, ceil_mode
GEOMETRIES = {
    "net": ((3, 16), (13, 21), (3, 3), (1, 1), (0, 0), (1, 1), (3, 3), (2, 2), (0, 0), False),
    "lenet": ((5, 20), (12, 12), (5, 5), (1, 1), (0, 0), (1, 1), (2, 2), (2, 2), (0, 0), False),
    "resnet": ((3, 40), (17, 19), (7, 7), (2, 2), (3, 3), (1, 1), (3, 3), (2, 2), (1, 1), False),
    "dilated": ((2, 5), (15, 17), (3, 2), (1, 2), (2, 1), (2, 3), (2, 3), (1, 3), (1, 1), False),
    "ceil": ((2, 7), (13, 15), (2, 3), (3, 1), (0, 0), (1, 1), (3, 3), (2, 2), (1, 1), True),
    "pool_apart": ((2, 3), (22, 25), (3, 3), (1, 1), (0, 0), (1, 1), (2, 2), (5, 4), (0, 0), True),
    "one_pixel": ((3, 4), (3, 3), (3, 3), (1, 1), (0, 0), (1, 1), (1, 1), (1, 1), (0, 0), False),
}


def conv_eager(kind: str, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    """conv_pool in the kernel's precision."""
    if kind == "tf32":
        x, weight = tf32(x), tf32(weight)
    return conv_pool_reference.conv_pool(x, weight, *rest)


def check_conv_pool(name: str, kind: str = "ieee", bias: bool = True, special: Sequence[float] = ()) -> torch.Tensor:
    """A geometry against float64. `special` values are put into the image."""
    x, weight, b, *geometry = conv_arguments(generator(), *GEOMETRIES[name])
    for i, value in enumerate(special):
        x[i % 2, 0, 1 + 2 * i, 2 + 3 * i] = value
    dtype = KINDS[kind][0]
    x, weight, b = convert((x, weight, b if bias else None), lambda t: t.to(dtype))
    exact = conv_pool_reference.conv_pool(*double((x, weight, b)), *geometry)
    eager = conv_eager(kind, x, weight, b, *geometry)
    with guarded_outputs():
        actual = conv_pool.run(rows_in_nan(x), *convert((weight, b), in_nan), *geometry, target=target(kind))
    assert_close_to_reference(actual, eager, exact)
    return actual


def check_conv_pool_mlp(
    name: str,
    features: Sequence[int],
    activations: Sequence[str],
    kind: str = "ieee",
    processors: int = 1,
    bias: bool = True,
    special: Sequence[float] = (),
) -> torch.Tensor:
    """The op in one launch against float64; on one processor strips are several rows long."""
    source = generator()
    x, weight, b, *geometry = conv_arguments(source, *GEOMETRIES[name])
    weights, biases = layers(source, features)
    for i, value in enumerate(special):
        x[i % 2, 0, 1 + 2 * i, 2 + 3 * i] = value
    if not bias:
        b, biases = None, [None] * len(biases)
    dtype = KINDS[kind][0]
    x, weight, b, weights, biases = convert((x, weight, b, weights, biases), lambda t: t.to(dtype))
    exact = conv_pool_mlp_reference.conv_pool_mlp(
        *double((x, weight, b)), tuple(geometry), *double((weights, biases)), activations
    )
    pooled = conv_eager(kind, x, weight, b, *geometry).contiguous().view(-1, features[0])
    eager = mlp_eager(kind, pooled, weights, biases, activations)
    assert kind == "tf32x3" or conv_pool_mlp.whole_refusal(x, weight, Geometry(*geometry), weights, kind) is None
    guarded = rows_in_nan(x), *convert((weight, b), in_nan), *geometry, *convert((weights, biases), in_nan)
    with guarded_outputs():
        actual = conv_pool_mlp.run(*guarded, activations, target=target(kind, processors=processors))
    assert_close_to_reference(actual, eager, exact)
    return actual
