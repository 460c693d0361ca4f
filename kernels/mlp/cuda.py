"""mlp on CUDA tensors: which kernels with which tiles, and their launches. The kernels are in kernels/mlp/triton.py."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from fastgraph.kernels.cuda import choices, tiles
from fastgraph.kernels.cuda.measure import Trial, Trials
from fastgraph.kernels.cuda.target import Target, activation_code, cdiv, padded
from fastgraph.kernels.cuda.tiles import Tile
from fastgraph.kernels.mlp.op import ACTIVATIONS, LAST_ONLY, Biases, Weights
from fastgraph.kernels.mlp.reference import ACTIVATIONS as FUNCTIONS
from fastgraph.kernels.mlp.reference import split

MOST_LAYERS = 4  # of the whole-chain kernel
WIDEST = 256  # features that one program keeps in registers: of all layers from the second on
WIDEST_SOFTMAX = 256  # features of one tile of the Linear kernel
LARGEST = 2**31 - 1  # rows are 32-bit numbers in the kernels; places in memory are not, where they may pass it
WHOLE_FROM = 16384  # rows; below, the weights would be read by too few programs to share their cost (model, FACTS 4)


def refusal(input: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str]) -> str | None:
    """Why the kernels do not take these tensors, or None if they do."""
    if any(0 in w.shape for w in weights):
        return "a layer without features"
    return f"more than {LARGEST} rows" if input.numel() // weights[0].shape[1] > LARGEST else None


def whole_refusal(weights: Weights, kind: str) -> str | None:
    """Why the chain does not run in one launch, or None if it can. `kind`: `Target.kind` of the tensors' dtype."""
    if kind == "tf32x3":
        return "tf32x3 (three products at once spill the registers of one launch)"
    if not 2 <= len(weights) <= MOST_LAYERS:
        return f"{len(weights)} layers (one launch takes 2 to {MOST_LAYERS})"
    if max(w.numel() for w in weights) > LARGEST:
        return f"more than {LARGEST} weights in a layer"
    widest = max(w.shape[0] for w in weights[1:])
    if widest > WIDEST:
        return f"{widest} features (one launch keeps up to {WIDEST} behind the first layer)"
    return None


def linear_key(weight: torch.Tensor, dtype: torch.dtype, target: Target) -> str:
    """What a measured tile of one layer holds for."""
    return f"linear {weight.shape[1]}-{weight.shape[0]} {target.kind(dtype)} {target.architecture.name}"


def key(weights: Weights, dtype: torch.dtype, target: Target) -> str:
    """What a measured choice holds for: the chain's sizes, dtype or precision, architecture."""
    sizes = "-".join(str(n) for n in (weights[0].shape[1], *(w.shape[0] for w in weights)))
    return f"mlp {sizes} {target.kind(dtype)} {target.architecture.name}"


def plan_for(weights: Weights, dtype: torch.dtype, rows: Any, target: Target) -> tuple[str, Tile | None]:
    """("whole" or "layers", its measured tile) for a number of rows: measured if anything was, else the default."""
    choice = choices.chosen(key(weights, dtype, target), rows)
    if choice is not None:
        return choice.plan, choice.tile
    return ("whole" if whole_refusal(weights, target.kind(dtype)) is None and rows >= WHOLE_FROM else "layers"), None


def describe(
    input: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str], *, target: Target
) -> tuple[str, str | None]:
    """(which kernels run at which number of rows, why not all of them can)."""
    reason = whole_refusal(weights, target.kind(input.dtype))
    if reason is not None:
        return "a kernel a layer", f"not one launch: {reason}"
    measured = choices.describe(key(weights, input.dtype, target))
    return measured or f"a kernel a layer, one launch from {WHOLE_FROM} rows on (default, not measured)", None


def run(
    input: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str], *, target: Target
) -> torch.Tensor:
    """The op by Triton kernels; same arguments and result as the op's."""
    x = input.reshape(-1, input.shape[-1])
    plan, tile = plan_for(weights, input.dtype, x.shape[0], target)
    if plan == "whole":
        x = whole(x, weights, biases, activations, target, tile)
    else:
        x = by_layers(x, weights, biases, activations, target)
    return x.view(*input.shape[:-1], weights[-1].shape[0])


def by_layers(
    x: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str], target: Target
) -> torch.Tensor:
    """The chain on rows x [M, K], a launch a layer."""
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        x = linear(x, weight, bias, activation, target)
    return x


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    target: Target,
    tile: Tile | None = None,
) -> torch.Tensor:
    """One layer on rows x [M, K]; `tile` None: the one measured as fastest, or the default."""
    from fastgraph.kernels.mlp import triton as kernels

    (rows, depth), features = x.shape, weight.shape[0]
    names = split(activation)
    softmax = bool(names) and names[-1] in LAST_ONLY
    if softmax and features > WIDEST_SOFTMAX:
        y = linear(x, weight, bias, "+".join(names[:-1]) or "none", target, tile)
        return FUNCTIONS[names[-1]](y)
    if tile is None:
        choice = choices.chosen(linear_key(weight, x.dtype, target), rows)
        tile = choice.tile if choice else None
    tile = tile or tiles.linear(rows, features, x.dtype, target, softmax)
    y = x.new_empty(rows, features)
    descriptors = target.architecture.has_descriptors and rows > 512 and describable(x) and describable(weight)
    grid = (cdiv(rows, tile.m) * cdiv(features, tile.n),)
    target.launch(kernels.linear_kernel)[grid](
        x_ptr=x, w_ptr=weight, b_ptr=weight if bias is None else bias.contiguous(), y_ptr=y,
        M=rows, N=features, K=depth, stride_xm=x.stride(0), stride_xk=x.stride(1), stride_wn=weight.stride(0),
        stride_wk=weight.stride(1), stride_ym=features, ACTIVATION=activation_code(names, ACTIVATIONS),
        HAS_BIAS=bias is not None, PRECISION=target.precision, DESCRIPTORS=descriptors,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, GROUP_M=8, **tile.options,
    )  # fmt: skip
    return y


def whole(
    x: torch.Tensor,
    weights: Weights,
    biases: Biases,
    activations: Sequence[str],
    target: Target,
    tile: Tile | None = None,
) -> torch.Tensor:
    """The whole chain on rows x [M, K] in one launch."""
    from fastgraph.kernels.mlp import triton as kernels

    sizes = [w.shape[0] for w in weights]
    if tile is None:
        tile = tiles.mlp(x.dtype, target)
    y = x.new_empty(x.shape[0], sizes[-1])
    arguments: dict[str, Any] = {}
    for i in range(MOST_LAYERS):
        present = i < len(weights)
        weight, bias = (weights[i], biases[i]) if present else (weights[0], None)
        arguments[f"w{i + 1}_ptr"] = weight.contiguous() if present else weights[0]
        arguments[f"b{i + 1}_ptr"] = weights[0] if bias is None else bias.contiguous()
        arguments[f"HAS_BIAS{i + 1}"] = bias is not None
        arguments[f"OUT{i + 1}"] = sizes[i] if present else 1
        arguments[f"ACTIVATION{i + 1}"] = activation_code(split(activations[i]), ACTIVATIONS) if present else 0
        if i > 0:
            arguments[f"PADDED{i + 1}"] = padded(sizes[i]) if present else 16
    grid = (cdiv(x.shape[0], tile.m),)
    target.launch(kernels.mlp_kernel)[grid](
        x_ptr=x, y_ptr=y, M=x.shape[0], stride_xm=x.stride(0), stride_xk=x.stride(1), LAYERS=len(weights),
        IN=x.shape[1], PRECISION=target.precision, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, **arguments,
        **tile.options,
    )  # fmt: skip
    return y


def describable(matrix: torch.Tensor) -> bool:
    """Whether a tensor descriptor can be made of it: 16-byte aligned, rows contiguous, multiples of 16 bytes apart."""
    size = matrix.element_size()
    aligned = matrix.storage_offset() * size % 16 == 0 and matrix.stride(0) * size % 16 == 0
    return bool(matrix.stride(1) == 1 and aligned)


def trials(
    input: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str], *, target: Target
) -> Iterator[Trials]:
    """Tiles of every layer, then the layers one by one against the whole chain."""
    x = input.reshape(-1, input.shape[-1])
    rows, dtype = x.shape[0], x.dtype
    layer_input = x
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        names = split(activation)
        softmax = bool(names) and names[-1] in LAST_ONLY and weight.shape[0] <= WIDEST_SOFTMAX
        layer = (layer_input, weight, bias, activation, target)
        found = tiles.linear_candidates(rows, weight.shape[0], dtype, target, softmax)
        yield Trials(
            linear_key(weight, dtype, target), rows, (Trial("layers", t, partial(linear, *layer, t)) for t in found)
        )
        layer_input = linear(*layer)
    chain = (x, weights, biases, activations, target)
    ways = [Trial("layers", None, partial(by_layers, *chain))]
    if whole_refusal(weights, target.kind(dtype)) is None:
        found = tiles.mlp_candidates(max(padded(w.shape[0]) for w in weights[1:]), dtype, target)
        ways += [Trial("whole", t, partial(whole, *chain, t)) for t in found]
    yield Trials(key(weights, dtype, target), rows, ways)
