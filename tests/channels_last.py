"""Maps in memory as the kernels for channels last take them: parts of wider tensors, between guards."""

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from fastgraph.kernels import native

GUARD = 64  # floats before and behind


def placed(values: torch.Tensor, beside: int = 0, around: float = float("nan")) -> torch.Tensor:
    """The values [N, C, ...] channels last, with so many floats more at the sides of each pixel, full of `around`."""
    batch, channels, *sizes = values.shape
    pixel, left = channels + beside, beside // 2
    strides = [pixel]
    for size in reversed(sizes):
        strides.insert(0, strides[0] * size)
    memory = torch.full((GUARD + batch * strides[0] + GUARD,), around)
    view = memory.as_strided(values.shape, (strides[0], 1, *strides[1:]), GUARD + left)
    view.copy_(values)
    return view


def run(
    kernel: Any, inputs: Sequence[torch.Tensor], size: Sequence[int], threads: int = 1, beside: int = 0
) -> torch.Tensor:
    """The kernel's result on inputs placed as it is itself, between NaN; what is beside it is seen to be unwritten."""
    sentinel = -12345.0
    result = placed(torch.full(tuple(size), sentinel), beside, sentinel)
    beside_each = [placed(x, beside and beside + 3 * i) for i, x in enumerate(inputs, 1)]
    for _ in range(2 if threads > 1 else 1):  # at once: at the second call workers take part in the smallest job too
        kernel.run(beside_each, [result], threads)
    expected = placed(result, beside, sentinel)
    assert torch.equal(_memory(result), _memory(expected)), "wrote beside the result"
    return result.contiguous()


def _memory(view: torch.Tensor) -> torch.Tensor:
    return torch.empty(0).set_(view.untyped_storage()).nan_to_num(nan=-54321.0)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, or both NaN."""
    bits = a.contiguous().view(torch.int32) == b.contiguous().view(torch.int32)
    return a.shape == b.shape and bool((bits | (a.isnan() & b.isnan())).all())


def same_everywhere(make: Any, inputs: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
    """The result of make()'s kernel, with the same bits on every ISA, with all threads, for each image alone."""
    module = native.kernels()
    assert module is not None
    before, first = module.isa(), None
    try:
        for name in module.isas():
            assert module.select_isa(name)
            kernel = make()
            for threads, beside in ((1, 0), (2, 5), (3, 0), (3, 1)):
                result = run(kernel, inputs, size, threads, beside)
                first = result if first is None else first
                assert same(result, first), (name, threads, beside)
            for n in range(size[0]):
                alone = run(kernel, [x[n : n + 1] for x in inputs], (1, *size[1:]))
                assert same(alone, first[n : n + 1]), (name, n)
    finally:
        module.select_isa(before)
    assert first is not None
    return first


def covering(options: dict[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Cases in which every pair of values of two options occurs."""
    names, draw = list(options), random.Random(seed)
    missing = {
        (a, i, b, j) for a, b in combinations(names, 2) for i in range(len(options[a])) for j in range(len(options[b]))
    }
    cases = []
    while missing:
        best: dict[str, int] = {}
        found: set[tuple[str, int, str, int]] = set()
        for a, i, b, j in draw.sample(sorted(missing), min(20, len(missing))):
            case = {name: draw.randrange(len(options[name])) for name in names} | {a: i, b: j}
            new = {(x, case[x], y, case[y]) for x, y in combinations(names, 2)} & missing
            if len(new) > len(found):
                best, found = case, new
        missing -= found
        cases.append({name: options[name][i] for name, i in best.items()})
    return cases
