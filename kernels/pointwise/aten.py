"""ATen's elementwise operators: chains of them are one pass over memory, or a convolution's epilogue."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

import torch

from fastgraph.kernels.conv.aten import PendingConv
from fastgraph.kernels.lowering import (
    Lowering,
    NotLowered,
    Operand,
    Pending,
    as_channels_last,
    lowers,
    require,
    size_of,
)
from fastgraph.kernels.pointwise.op import ACTIVATIONS, Instruction, instruction
from fastgraph.kernels.pointwise.op import activation as activation_instruction

aten = torch.ops.aten

MAX_INPUTS = 8  # of a program; kMaxInputs in kernels/pointwise/cpu.h
MAX_INSTRUCTIONS = 24


class Expression(NamedTuple):
    """An operation, and the values and expressions that it reads."""

    make: Callable[..., Instruction]  # of the registers
    reads: tuple[Union["Expression", torch.Tensor], ...]


class PendingPointwise(Pending):
    """A chain of elementwise operations."""

    def __init__(self, size: Sequence[int], expression: Expression) -> None:
        super().__init__(size)
        self.expression = expression

    def emit(self, low: Lowering) -> torch.Tensor:
        """Adds the step: all values in the layout of those that have the result's size."""
        size = self.tensor.shape
        inputs: list[torch.Tensor] = []
        _collect(self.expression, inputs)
        full = [x for x in inputs if x.shape == size]
        is_last = len(size) in (3, 4) and any(not x.is_contiguous() and as_channels_last(x) is not None for x in full)
        result = low.result(size, channels_last=is_last)
        arrange = low.channels_last if is_last else low.contiguous
        arranged = {id(x): arrange(x) if x.shape == size else x for x in inputs}
        registers = {id(x): i for i, x in enumerate(inputs)}
        program: list[Instruction] = []
        _write(self.expression, registers, len(inputs), program)
        kernel = low.kernels.Pointwise(program, len(inputs))
        return low.step(kernel, [arranged[id(x)].expand(size) for x in inputs], result)


def _collect(expression: Expression, inputs: list[torch.Tensor]) -> None:
    for value in expression.reads:
        if isinstance(value, Expression):
            _collect(value, inputs)
        elif all(value is not x for x in inputs):
            inputs.append(value)


def _write(expression: Expression, registers: dict[int, int], first: int, program: list[Instruction]) -> int:
    """Adds the instructions; returns the register of the result."""
    reads = [
        _write(value, registers, first, program) if isinstance(value, Expression) else registers[id(value)]
        for value in expression.reads
    ]
    program.append(expression.make(*reads))
    return first + len(program) - 1


def _count(expression: Expression) -> int:
    return 1 + sum(_count(value) for value in expression.reads if isinstance(value, Expression))


def _fits(parts: Sequence[Expression | torch.Tensor]) -> bool:
    inputs: list[torch.Tensor] = []
    whole = Expression(instruction, tuple(parts))
    _collect(whole, inputs)
    return len(inputs) <= MAX_INPUTS and _count(whole) <= MAX_INSTRUCTIONS


def _broadcast(operands: Sequence[Operand]) -> torch.Size:
    try:
        shown = [x.tensor if isinstance(x, Pending) else x for x in operands]
        return torch.broadcast_tensors(*shown)[0].shape  # broadcast_shapes imports sympy
    except RuntimeError as error:
        raise NotLowered("sizes that do not fit") from error


def pointwise(low: Lowering, make: Callable[..., Instruction], *operands: Operand) -> PendingPointwise:
    """An operation on values, and on chains where only it reads them and they have its size."""
    size = _broadcast(operands)
    parts: list[Expression | torch.Tensor] = []
    for operand in operands:
        chained = isinstance(operand, PendingPointwise) and operand.tensor.shape == size
        parts.append(operand.expression if chained else low.ready(operand))  # type: ignore[union-attr]
    if not _fits(parts):
        parts = [
            low.ready(operand) if isinstance(operand, PendingPointwise) else part
            for operand, part in zip(operands, parts, strict=True)
        ]
    return PendingPointwise(size, Expression(make, tuple(parts)))


def _activation(low: Lowering, x: Operand, name: str, a: float = 0.0, b: float = 0.0) -> Operand:
    if isinstance(x, PendingConv) and x.takes_activation():
        return x.add_activation(ACTIVATIONS.index(name), a, b)
    return pointwise(low, lambda register: activation_instruction(name, register, a, b), x)


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise NotLowered(f"{value!r} is no number")
    return float(value)


@lowers(aten.relu.default)
def relu(low: Lowering, x: Operand) -> Operand:
    """max(x, 0)."""
    return _activation(low, x, "relu")


@lowers(aten.relu6.default)
def relu6(low: Lowering, x: Operand) -> Operand:
    """To [0, 6]."""
    return _activation(low, x, "clamp", 0.0, 6.0)


@lowers(aten.hardtanh.default)
def hardtanh(low: Lowering, x: Operand, min_val: float = -1, max_val: float = 1) -> Operand:
    """To [min_val, max_val]."""
    return _activation(low, x, "clamp", _number(min_val), _number(max_val))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _are_bounds(x: Any, min: Any = None, max: Any = None) -> bool:
    given = [bound for bound in (min, max) if bound is not None]
    return all(map(_is_number, given)) and (len(given) < 2 or min <= max)


@lowers(aten.clamp.default, when=_are_bounds)
def clamp(low: Lowering, x: Operand, min: float | None = None, max: float | None = None) -> Operand:
    """To [min, max]."""
    least = -torch.inf if min is None else _number(min)
    most = torch.inf if max is None else _number(max)
    return _activation(low, x, "clamp", least, most)


@lowers(aten.clamp_min.default, when=lambda x, min: _is_number(min))
def clamp_min(low: Lowering, x: Operand, min: float) -> Operand:
    """To [min, inf]."""
    return clamp(low, x, min)


@lowers(aten.clamp_max.default, when=lambda x, max: _is_number(max))
def clamp_max(low: Lowering, x: Operand, max: float) -> Operand:
    """To [-inf, max]."""
    return clamp(low, x, None, max)


@lowers(aten.gelu.default)
def gelu(low: Lowering, x: Operand, *, approximate: str = "none") -> Operand:
    """By the error function, or by tanh."""
    return _activation(low, x, "gelu_tanh" if approximate == "tanh" else "gelu")


@lowers(aten.leaky_relu.default)
def leaky_relu(low: Lowering, x: Operand, negative_slope: float = 0.01) -> Operand:
    """Below zero with that slope."""
    return _activation(low, x, "leaky_relu", _number(negative_slope))


@lowers(aten.elu.default, when=lambda x, alpha=1, scale=1, input_scale=1: (scale, input_scale) == (1, 1))
def elu(low: Lowering, x: Operand, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Operand:
    """Below zero alpha (e^x - 1)."""
    return _activation(low, x, "elu", _number(alpha))


@lowers(aten.softplus.default)
def softplus(low: Lowering, x: Operand, beta: float = 1, threshold: float = 20) -> Operand:
    """log(1 + e^(beta x)) / beta."""
    return _activation(low, x, "softplus", _number(beta), _number(threshold))


def _named(target: Any, name: str) -> None:
    @lowers(target)
    def lower(low: Lowering, x: Operand) -> Operand:
        return _activation(low, x, name)


for _name in ("silu", "tanh", "sigmoid", "hardswish", "hardsigmoid", "mish"):
    _named(getattr(aten, _name).default, _name)


def _unary(target: Any, opcode: str) -> None:
    @lowers(target)
    def lower(low: Lowering, x: Operand) -> Operand:
        return pointwise(low, lambda register: instruction(opcode, register), x)


for _name in ("abs", "neg", "sqrt", "rsqrt", "reciprocal", "floor", "ceil", "exp", "expm1", "log", "log1p", "erf"):
    _unary(getattr(aten, _name).default, _name)
for _name in ("sin", "cos", "square"):
    _unary(getattr(aten, _name).default, _name)


def _residual(low: Lowering, x: Operand, y: Operand) -> Operand | None:
    """The sum of a convolution and a value of its size, in its epilogue."""
    for conv, other in ((x, y), (y, x)):
        if isinstance(conv, PendingConv) and conv.takes_residual(size_of(other)):
            return conv.add_residual(low.ready(other))
    return None


@lowers(aten.add.Tensor)
def add(low: Lowering, x: Operand, y: Any, *, alpha: float = 1) -> Operand:
    """x + alpha y."""
    if isinstance(y, int | float):
        value = y * alpha
        return pointwise(low, lambda register: instruction("add_scalar", register, p=value), x)
    if alpha == 1 and (sum := _residual(low, x, y)) is not None:
        return sum
    return pointwise(low, lambda a, b: instruction("add", a, b, p=_number(alpha)), x, y)


@lowers(aten.sub.Tensor)
def sub(low: Lowering, x: Operand, y: Any, *, alpha: float = 1) -> Operand:
    """x - alpha y."""
    if isinstance(y, int | float):
        return add(low, x, -y, alpha=alpha)
    return pointwise(low, lambda a, b: instruction("sub", a, b, p=_number(alpha)), x, y)


@lowers(aten.rsub.Scalar, when=lambda x, y, alpha=1: alpha == 1 and _is_number(y))
def rsub(low: Lowering, x: Operand, y: float, alpha: float = 1) -> Operand:
    """y - alpha x."""
    return pointwise(low, lambda register: instruction("rsub_scalar", register, p=_number(y)), x)


@lowers(aten.mul.Tensor)
def mul(low: Lowering, x: Operand, y: Any) -> Operand:
    """x y."""
    if isinstance(y, int | float):
        return pointwise(low, lambda register: instruction("mul_scalar", register, p=float(y)), x)
    return pointwise(low, lambda a, b: instruction("mul", a, b), x, y)


@lowers(aten.div.Tensor)
def div(low: Lowering, x: Operand, y: Any) -> Operand:
    """x / y."""
    if isinstance(y, int | float):
        return pointwise(low, lambda register: instruction("div_scalar", register, p=float(y)), x)
    return pointwise(low, lambda a, b: instruction("div", a, b), x, y)


@lowers(aten.maximum.default)
def maximum(low: Lowering, x: Operand, y: Operand) -> Operand:
    """The larger one."""
    return pointwise(low, lambda a, b: instruction("maximum", a, b), x, y)


@lowers(aten.minimum.default)
def minimum(low: Lowering, x: Operand, y: Operand) -> Operand:
    """The smaller one."""
    return pointwise(low, lambda a, b: instruction("minimum", a, b), x, y)


_POWERS = {2: "square", 3: "cube", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@lowers(aten.pow.Tensor_Scalar, when=lambda x, exponent: _is_number(exponent) and exponent in _POWERS)
def pow(low: Lowering, x: Operand, exponent: float) -> Operand:
    """Some powers."""
    return pointwise(low, lambda register: instruction(_POWERS[exponent], register), x)


@lowers(aten.prelu.default)
def prelu(low: Lowering, x: Operand, weight: torch.Tensor) -> Operand:
    """Below zero with a slope for each channel."""
    size = size_of(x)
    require(weight.numel() in (1, size[1] if len(size) > 1 else 1), "slopes for other channels")
    slope = weight.reshape([-1] + [1] * (len(size) - 2)) if len(size) >= 2 else weight
    return pointwise(low, lambda a, b: instruction("prelu", a, b), x, slope)
