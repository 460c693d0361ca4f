"""Faults planted into the kernels' source: each must make the check that is named beside it fail.

A test that passes on a broken kernel would be worth nothing. The checks themselves pass on the kernels as they are
(test_mlp.py, test_conv_pool.py, and at the end here).
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from triton.runtime.errors import InterpreterError

from tests.reference import random
from tests.triton_interpreter.checks import check_conv_pool, check_conv_pool_mlp, check_mlp, generator

USERS = ("fastgraph.kernels.mlp.triton", "fastgraph.kernels.conv_pool.triton", "fastgraph.kernels.conv_pool_mlp.triton")
FUNCTIONS, MLP, CONV_POOL, CONV_POOL_MLP = "fastgraph.kernels.cuda.functions", *USERS


def with_infinity(plan: str) -> torch.Tensor:
    x = random(generator(), (5, 20))
    x[1, 3] = float("inf")
    return check_mlp([20, 1, 5], ["relu", "none"], 5, plan=plan, x=x)


CHECKS: dict[str, Callable[[], Any]] = {
    "linear": lambda: check_mlp([37, 35], ["relu"], 19),
    "linear, bf16": lambda: check_mlp([70, 35], ["none"], 19, "bf16"),
    "linear, tf32": lambda: check_mlp([70, 35], ["none"], 19, "tf32"),
    "linear with NaN": lambda: check_mlp([3, 2], ["relu"], 2, x=torch.full((2, 3), float("nan"))),
    "linear, softmax": lambda: check_mlp([20, 13], ["softmax"], 5),
    "descriptors": lambda: check_mlp([40, 24], ["relu"], 520, architecture="sm_90"),
    "whole chain": lambda: check_mlp([37, 70, 13, 5], ["relu", "sigmoid", "none"], 9, plan="whole"),
    "whole chain with infinity": lambda: with_infinity("whole"),
    "whole chain, bf16": lambda: check_mlp([37, 70, 13, 5], ["none", "none", "none"], 40, "bf16", "whole"),
    "conv_pool": lambda: check_conv_pool("net"),
    "conv_pool, padded": lambda: check_conv_pool("resnet"),
    "conv_pool with NaN": lambda: check_conv_pool("net", special=[float("nan")]),
    "conv_pool_mlp": lambda: check_conv_pool_mlp("net", [9, 20, 3], ["relu", "none"], "tf32"),
    "conv_pool_mlp, tap by tap": lambda: check_conv_pool_mlp("dilated", [3, 6, 2], ["relu", "none"]),
    "conv_pool_mlp, padded": lambda: check_conv_pool_mlp("dilated", [3, 6, 2], ["relu", "none"], "tf32"),
}

# fault: (module, source, its replacement, the check that must see it)
FAULTS = {
    "row mask off by one": (
        MLP,
        "(rows[:, None] < M) & (columns",
        "(rows[:, None] <= M) & (columns",
        "linear",
    ),
    "row missing": (MLP, "(rows[:, None] < M) & (columns", "(rows[:, None] < M - 1) & (columns", "linear"),
    "column mask off by one": (MLP, "& (columns[None, :] < N))", "& (columns[None, :] <= N))", "linear"),
    "k mask off by one": (MLP, "inside = start + k < K", "inside = start + k <= K", "linear"),
    "k tail dropped": (
        MLP,
        "range(0, K, BLOCK_K):\n        inside",
        "range(0, K - BLOCK_K, BLOCK_K):\n        inside",
        "linear",
    ),
    "wrong stride": (MLP, "k.to(tl.int64)[:, None] * stride_wk", "k.to(tl.int64)[:, None] * stride_wn", "linear"),
    "missing bias": (FUNCTIONS, "    if HAS_BIAS:", "    if False:", "linear"),
    "ReLU before bias": (
        FUNCTIONS,
        "x = add_bias(x, ",
        "x = add_bias(activate(x, valid, ACTIVATION, AXIS), ",
        "linear",
    ),
    "no ReLU": (FUNCTIONS, "x = maximum_or_nan(x, 0.0)", "x = x", "linear"),
    "NaN becomes zero": (
        FUNCTIONS,
        "propagate_nan=tl.PropagateNan.ALL",
        "propagate_nan=tl.PropagateNan.NONE",
        "linear with NaN",
    ),
    "softmax over the padding": (FUNCTIONS, 'x = tl.where(valid, x, float("-inf"))', "x = x", "linear, softmax"),
    "wrong dtype cast": (
        MLP,
        "rounded_to(finish_layer(y, b_ptr, columns, N, ACTIVATION, HAS_BIAS, 1), ",
        "rounded_to(finish_layer(y, b_ptr, columns, N, ACTIVATION, HAS_BIAS, 1).to(tl.float8e5).to(tl.float32), ",
        "linear, bf16",
    ),
    "tf32 of one operand only": (
        FUNCTIONS,
        "rhs_high = tf32_of(rhs)",
        "rhs_high = rounded_to(rhs, tl.bfloat16).to(tl.float32)",
        "linear, tf32",
    ),
    "swapped operands": (
        MLP,
        "multiply_add(lhs, tl.trans(rhs), accumulator",
        "multiply_add(rhs, tl.trans(lhs), accumulator",
        "descriptors",
    ),
    "descriptor one tile off": (
        MLP,
        "x.load([first_row, start])",
        "x.load([first_row, start + BLOCK_K])",
        "descriptors",
    ),
    "last slice of layer 1 dropped": (
        MLP,
        "range(0, OUT1, BLOCK_N)",
        "range(0, OUT1 - BLOCK_N, BLOCK_N)",
        "whole chain",
    ),
    "padding not zeroed behind layer 1": (
        FUNCTIONS,
        "return tl.where(valid, activate(x, valid, ACTIVATION, AXIS), 0.0)",
        "return activate(x, valid, ACTIVATION, AXIS)",
        "whole chain with infinity",
    ),
    "third layer's bias missing": (MLP, "ACTIVATION3, HAS_BIAS3", "ACTIVATION3, False", "whole chain"),
    "hidden layer in fp8": (
        MLP,
        "multiply_add(rounded_to(hidden, dtype), w2",
        "multiply_add(hidden.to(tl.float8e5).to(tl.float32), w2",
        "whole chain, bf16",
    ),
    "pool window short by one": (CONV_POOL, "range(POOL_H * POOL_W)", "range(POOL_H * POOL_W - 1)", "conv_pool"),
    "pool window's rows and columns swapped": (
        CONV_POOL,
        "POOL_STRIDE_H + tap // POOL_W",
        "POOL_STRIDE_H + tap % POOL_W * 2",
        "conv_pool",
    ),
    "channel offset forgotten": (
        CONV_POOL,
        "tl.cast(k // (KERNEL_H * KERNEL_W), tl.int64) * stride_xc",
        "tl.cast(k // (KERNEL_H * KERNEL_W), tl.int64) * stride_xh",
        "conv_pool",
    ),
    "padding read as pixels": (CONV_POOL, "if PADDING_W > 0", "if PADDING_W < 0", "conv_pool, padded"),
    "pool padding counted as zero": (
        CONV_POOL,
        'tl.where(exists[:, None], conv, float("-inf"))',
        "conv - 1",
        "conv_pool",
    ),
    "NaN lost in the pool": (
        CONV_POOL,
        "best = maximum_or_nan(best, tl.where",
        "best = tl.maximum(best, tl.where",
        "conv_pool with NaN",
    ),
    "shared row not kept": (CONV_POOL_MLP, "if i >= POOL_STRIDE_H:", "if i > POOL_STRIDE_H:", "conv_pool_mlp"),
    "window's last column dropped": (
        CONV_POOL_MLP,
        "tl.static_range(phase, POOL_W, POOL_STRIDE_W)",
        "tl.static_range(phase, POOL_W - 1, POOL_STRIDE_W)",
        "conv_pool_mlp",
    ),
    "strip one row too long": (CONV_POOL_MLP, "min(first + STRIP, POOLED_H)", "first + STRIP", "conv_pool_mlp"),
    "feature tail dropped": (
        FUNCTIONS,
        "(k < K)[None, :]",
        "(k < K - 1)[None, :]",
        "conv_pool_mlp",
    ),
    "last tap dropped": (FUNCTIONS, "(k < K)[:, None]", "(k < K - 1)[:, None]", "conv_pool"),
    "strip's padding read as pixels": (CONV_POOL, "if PADDING_H > 0", "if PADDING_H < 0", "conv_pool_mlp, padded"),
    "tap by tap, one tap off": (
        CONV_POOL_MLP,
        "w_ptr + channels * TAPS + tap",
        "w_ptr + channels * TAPS + tap + 1",
        "conv_pool_mlp, tap by tap",
    ),
    "kernel's rows and columns swapped": (
        CONV_POOL_MLP,
        "(KERNEL_H, KERNEL_W)",
        "(KERNEL_W, KERNEL_H)",
        "conv_pool_mlp, padded",
    ),
}


def load(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `name` from another file, in the place of the one that is loaded."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    package, _, stem = name.rpartition(".")
    monkeypatch.setattr(importlib.import_module(package), stem, module, raising=False)
    spec.loader.exec_module(module)
    return module


def plant(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads all kernels anew, one file of them with the fault in it."""
    target, source, replacement, _ = FAULTS[fault]
    for name in (FUNCTIONS, *USERS):
        original = importlib.util.find_spec(name)
        assert original is not None
        assert original.origin is not None
        text = Path(original.origin).read_text()
        if name == target:
            assert text.count(source) >= 1, f"{source!r} is not in {name}: the kernels changed, the fault has to follow"
            text = text.replace(source, replacement)
        path = folder / f"{name}.py"
        path.write_text(text)
        load(name, path, monkeypatch)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(fault, tmp_path, monkeypatch)
    with pytest.raises((AssertionError, InterpreterError)):
        CHECKS[FAULTS[fault][3]]()


@pytest.mark.parametrize("name", CHECKS)
def test_the_checks_pass_on_the_kernels(name: str) -> None:
    CHECKS[name]()
