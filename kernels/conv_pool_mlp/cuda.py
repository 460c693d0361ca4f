"""conv_pool_mlp on CUDA tensors: one launch where it fits (kernels/conv_pool_mlp/triton.py), else conv_pool and mlp."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from fastgraph.kernels.conv_pool import cuda as conv_pool
from fastgraph.kernels.conv_pool.op import Geometry, output_shape
from fastgraph.kernels.conv_pool_mlp.op import split
from fastgraph.kernels.cuda import choices, tiles
from fastgraph.kernels.cuda.measure import Trial, Trials
from fastgraph.kernels.cuda.target import Target, activation_code, cdiv, padded
from fastgraph.kernels.cuda.tiles import Tile
from fastgraph.kernels.mlp import cuda as mlp
from fastgraph.kernels.mlp.op import ACTIVATIONS, Weights
from fastgraph.kernels.mlp.reference import split as split_activation

MOST_LAYERS = 3
MOST_PRODUCTS = 9  # matrix products of the convolution a pooled row: they are all unrolled
MOST_TAPS = 256  # weights of one output channel, resident in every program
WIDEST_ROW = 512  # pooled pixels of a row, with those that the last window reaches
WIDEST = 128  # features of layers behind the first, and of the first where it is the last
LONGEST_STRIP = 16  # pooled rows a program


def refusal(input: torch.Tensor, *arguments: Any) -> str | None:
    """Why the kernels do not take these tensors, or None if they do."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    return conv_pool.refusal(input, weight, bias, *geometry) or mlp.refusal(input, weights, biases, activations)


def whole_refusal(
    input: torch.Tensor, weight: torch.Tensor, geometry: Geometry, weights: Weights, kind: str
) -> str | None:
    """Why the op does not run in one launch, or None if it can. `kind`: `Target.kind` of the tensors' dtype."""
    if kind == "tf32x3":
        return "tf32x3 (three products at once spill the registers of one launch)"
    pool, pool_stride = geometry.pool_kernel_size, geometry.pool_stride
    if pool[0] > 2 * pool_stride[0]:
        return f"pool kernel {pool[0]} over stride {pool_stride[0]} (rows of one window are in two steps at most)"
    products = min(pool[0], pool_stride[0]) * min(pool[1], pool_stride[1])
    if products > MOST_PRODUCTS:
        return f"{products} products a pooled row (one launch unrolls up to {MOST_PRODUCTS})"
    taps = weight[0].numel()
    if taps > MOST_TAPS:
        return f"{taps} weights a channel (one launch keeps up to {MOST_TAPS})"
    if len(weights) > MOST_LAYERS:
        return f"{len(weights)} layers (one launch takes up to {MOST_LAYERS})"
    widest = max(w.shape[0] for w in (weights if len(weights) == 1 else weights[1:]))
    if widest > WIDEST:
        return f"{widest} features (one launch keeps up to {WIDEST} behind the first layer)"
    features = weights[0].shape[1]
    if features + reach(geometry) > WIDEST_ROW:
        return f"rows of {features} pooled pixels (one launch keeps up to {WIDEST_ROW - reach(geometry)})"
    if output_shape(input, weight, geometry)[3] != features:
        return f"the rows of the mlp ({features} features) are not the pooled rows"
    return None


def reach(geometry: Geometry) -> int:
    """Windows to the right of the last one whose convolution columns it takes."""
    return int((geometry.pool_kernel_size[1] - 1) // geometry.pool_stride[1])


def key(input: torch.Tensor, weight: torch.Tensor, geometry: Geometry, weights: Weights, target: Target) -> str:
    """What a measured choice holds for: the two ops' keys."""
    name = conv_pool.key(weight, geometry, input.dtype, target).replace("conv_pool", "conv_pool_mlp", 1)
    return f"{name} {mlp.key(weights, input.dtype, target)}"


def run(input: torch.Tensor, *arguments: Any, target: Target) -> torch.Tensor:
    """The op by Triton kernels; same arguments and result as the op's."""
    weight, _, geometry, weights, _, _ = split(arguments)
    choice = choices.chosen(key(input, weight, geometry, weights, target), input.shape[0])
    two = choice is not None and choice.plan == "layers"
    if two or whole_refusal(input, weight, geometry, weights, target.kind(input.dtype)) is not None:
        return in_two(input, *arguments, target=target)
    return whole(input, *arguments, target=target, tile=None if choice is None else choice.tile)


def in_two(input: torch.Tensor, *arguments: Any, target: Target) -> torch.Tensor:
    """conv_pool, then mlp."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    pooled = conv_pool.run(input, weight, bias, *geometry, target=target)
    return mlp.run(pooled.view(-1, weights[0].shape[1]), weights, biases, activations, target=target)


def describe(input: torch.Tensor, *arguments: Any, target: Target) -> tuple[str, str | None]:
    """(which kernels run at which batch, why not all of them can)."""
    weight, _, geometry, weights, _, _ = split(arguments)
    reason = whole_refusal(input, weight, geometry, weights, target.kind(input.dtype))
    if reason is not None:
        return "conv_pool, then mlp", f"not one launch: {reason}"
    measured = choices.describe(key(input, weight, geometry, weights, target))
    return measured or "one launch (default, not measured)", None


def whole(input: torch.Tensor, *arguments: Any, target: Target, tile: Tile | None = None) -> torch.Tensor:
    """The op in one launch."""
    from fastgraph.kernels.conv_pool_mlp import triton as kernels

    weight, bias, geometry, weights, biases, activations = split(arguments)
    batch, channels, height, _ = output_shape(input, weight, geometry)
    sizes = [w.shape[0] for w in weights]
    tile = tile or tiles.conv_pool_mlp(channels, weight[0].numel(), input.dtype, target)
    channel_tiles = cdiv(channels, tile.m)
    # Longer strips compute fewer rows twice, shorter ones are more programs: four a multiprocessor, if possible.
    strip = batch * height * channel_tiles // (4 * target.processors)
    strip = torch.sym_max(1, torch.sym_min(LONGEST_STRIP, strip))
    y = input.new_empty(batch * channels * height, sizes[-1])
    layers: dict[str, Any] = {}
    for i in range(MOST_LAYERS):
        present = i < len(weights)
        layer_bias = biases[i] if present else None
        layers[f"w{i + 1}_ptr"] = weights[i].contiguous() if present else weights[0]
        layers[f"b{i + 1}_ptr"] = weights[0] if layer_bias is None else layer_bias.contiguous()
        layers[f"HAS_BIAS{i + 1}"] = layer_bias is not None
        layers[f"OUT{i + 1}"] = sizes[i] if present else 1
        layers[f"ACTIVATION{i + 1}"] = activation_code(split_activation(activations[i]), ACTIVATIONS) if present else 0
        if i > 0:
            layers[f"PADDED{i + 1}"] = padded(sizes[i]) if present else 16
    grid = (batch * cdiv(height, strip) * channel_tiles,)
    target.launch(kernels.conv_pool_mlp_kernel)[grid](
        **conv_pool.geometry_arguments(input, weight, geometry),
        **layers,
        b_ptr=weight if bias is None else bias.contiguous(),
        y_ptr=y,
        POOLED_H=height,
        STRIP=strip,
        HAS_BIAS=bias is not None,
        LAYERS=len(weights),
        IN=weights[0].shape[1],
        PRECISION=target.precision,
        BLOCK_W=padded(weights[0].shape[1] + reach(geometry)),
        BLOCK_O=tile.m,
        BLOCK_K=tile.k,
        BLOCK_F=padded(sizes[0]) if len(weights) == 1 else tile.n,
        **tile.options,
    )
    return y


def trials(input: torch.Tensor, *arguments: Any, target: Target) -> Iterator[Trials]:
    """Tiles of the two ops, then the two against one launch."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    yield from conv_pool.trials(input, weight, bias, *geometry, target=target)
    rows = conv_pool.run(input, weight, bias, *geometry, target=target).view(-1, weights[0].shape[1])
    yield from mlp.trials(rows, weights, biases, activations, target=target)
    ways = [Trial("layers", None, partial(in_two, input, *arguments, target=target))]
    if whole_refusal(input, weight, geometry, weights, target.kind(input.dtype)) is None:
        found = tiles.conv_pool_mlp_candidates(weight.shape[0], weight[0].numel(), input.dtype, target)
        ways += [Trial("whole", t, partial(whole, input, *arguments, target=target, tile=t)) for t in found]
    yield Trials(key(input, weight, geometry, weights, target), input.shape[0], ways)
