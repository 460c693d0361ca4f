"""Programs of the native kernel `Pointwise`: elementwise operations with broadcasting, fp32.

    Pointwise(program, inputs, constants=[], axis_of_constants=-1)

`program` is a list of instructions (opcode, a, b, c, p, q). Registers are numbered: the inputs come first, then the
constants, then one for each instruction; the last is the result. a, b and c are registers that an operation reads, p
and q its numbers. A constant is (address, count) of a vector that lies along `axis_of_constants` of the result (1:
channels of a map, -1: features of rows). Inputs have any strides, and are broadcast to the result as in torch.

    add, sub: a + p b, a - p b      mul, div, maximum, minimum      greater, greater_equal, equal, not_equal: 1 or 0
    add_scalar, mul_scalar, div_scalar: a + p, a p, a / p           rsub_scalar: p - a
    greater_scalar, greater_equal_scalar, less_scalar, less_equal_scalar, equal_scalar, not_equal_scalar: 1 or 0
    where: b where a is not 0, else c                               prelu: a above 0, else b a
    addcmul: a + p b c, the last product not rounded                addcdiv: a + p b / c
    abs, neg, square, cube, sqrt, rsqrt, reciprocal, floor, ceil, round, exp, expm1, log, log1p, erf, sin, cos: of a
    activation: of a; b is a place in `ACTIVATIONS`, p and q are its parameters
"""

from fastgraph.kernels.mlp import op as mlp

# The order of FASTGRAPH_POINTWISE in cpu.h.
OPCODES = (
    *("add", "sub", "mul", "div", "maximum", "minimum", "greater", "greater_equal", "equal", "not_equal"),
    *("add_scalar", "mul_scalar", "div_scalar", "rsub_scalar"),
    *("greater_scalar", "greater_equal_scalar", "less_scalar", "less_equal_scalar", "equal_scalar", "not_equal_scalar"),
    *("where", "addcmul", "addcdiv", "prelu"),
    *("abs", "neg", "square", "cube", "sqrt", "rsqrt", "reciprocal", "floor", "ceil", "round"),
    *("exp", "expm1", "log", "log1p", "erf", "sin", "cos", "activation"),
)

# The order of `enum class Activation` in kernels/cpu/activation.h. Parameters: clamp (least, most), leaky_relu (slope),
# elu (alpha), softplus (beta, threshold).
ACTIVATIONS = (
    *mlp.ACTIVATIONS,
    *("clamp", "leaky_relu", "elu", "hardswish", "hardsigmoid", "mish", "softplus"),
)

Instruction = tuple[int, int, int, int, float, float]


def instruction(opcode: str, *registers: int, p: float = 1.0, q: float = 0.0) -> Instruction:
    """An instruction by the name of its operation; p is 1 where nothing is said, as torch's alpha and value."""
    a, b, c = (*registers, 0, 0, 0)[:3]
    return OPCODES.index(opcode), a, b, c, p, q


def activation(name: str, register: int, p: float = 0.0, q: float = 0.0) -> Instruction:
    """An activation by its name."""
    return instruction("activation", register, ACTIVATIONS.index(name), p=p, q=q)
