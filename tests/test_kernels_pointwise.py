"""The native kernels Pointwise and Copy against torch: every operation, broadcasts, layouts, guards, the same bits."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgraph.kernels import native
from fastgraph.kernels.pointwise.op import ACTIVATIONS, OPCODES, Instruction, activation, instruction
from tests.conftest import ISAS
from tests.reference import assert_close_to_reference, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

kernels: Any = native.kernels()
Tensors = Sequence[torch.Tensor]

GUARD, SENTINEL = 67, -123456.0
SPECIAL = [
    0.0,
    -0.0,
    torch.inf,
    -torch.inf,
    torch.nan,
    1e-41,
    -1e-41,
    1.0,
    -1.0,
    0.5,
    -0.5,
    2.5,
    -1.5,
    3e38,
    -3e38,
    89.0,
]

# What an operation is in torch, of its registers and numbers.
OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "add": lambda a, b, c, p: torch.add(a, b, alpha=p),
    "sub": lambda a, b, c, p: torch.sub(a, b, alpha=p),
    "mul": lambda a, b, c, p: a * b,
    "div": lambda a, b, c, p: a / b,
    "maximum": lambda a, b, c, p: torch.maximum(a, b),
    "minimum": lambda a, b, c, p: torch.minimum(a, b),
    "greater": lambda a, b, c, p: (a > b).to(a.dtype),
    "greater_equal": lambda a, b, c, p: (a >= b).to(a.dtype),
    "equal": lambda a, b, c, p: (a == b).to(a.dtype),
    "not_equal": lambda a, b, c, p: (a != b).to(a.dtype),
    "add_scalar": lambda a, b, c, p: a + p,
    "mul_scalar": lambda a, b, c, p: a * p,
    "div_scalar": lambda a, b, c, p: a / p,
    "rsub_scalar": lambda a, b, c, p: p - a,
    "greater_scalar": lambda a, b, c, p: (a > p).to(a.dtype),
    "greater_equal_scalar": lambda a, b, c, p: (a >= p).to(a.dtype),
    "less_scalar": lambda a, b, c, p: (a < p).to(a.dtype),
    "less_equal_scalar": lambda a, b, c, p: (a <= p).to(a.dtype),
    "equal_scalar": lambda a, b, c, p: (a == p).to(a.dtype),
    "not_equal_scalar": lambda a, b, c, p: (a != p).to(a.dtype),
    "where": lambda a, b, c, p: torch.where(a != 0, b, c),
    "addcmul": lambda a, b, c, p: torch.addcmul(a, b, c, value=p),
    "addcdiv": lambda a, b, c, p: torch.addcdiv(a, b, c, value=p),
    "prelu": lambda a, b, c, p: torch.where(a > 0, a, b * a),
    "abs": lambda a, b, c, p: a.abs(),
    "neg": lambda a, b, c, p: -a,
    "square": lambda a, b, c, p: a.square(),
    "cube": lambda a, b, c, p: a.pow(3),
    "sqrt": lambda a, b, c, p: a.sqrt(),
    "rsqrt": lambda a, b, c, p: a.rsqrt(),
    "reciprocal": lambda a, b, c, p: a.reciprocal(),
    "floor": lambda a, b, c, p: a.floor(),
    "ceil": lambda a, b, c, p: a.ceil(),
    "round": lambda a, b, c, p: a.round(),
    "exp": lambda a, b, c, p: a.exp(),
    "expm1": lambda a, b, c, p: a.expm1(),
    "log": lambda a, b, c, p: a.log(),
    "log1p": lambda a, b, c, p: a.log1p(),
    "erf": lambda a, b, c, p: a.erf(),
    "sin": lambda a, b, c, p: a.sin(),
    "cos": lambda a, b, c, p: a.cos(),
}
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "greater", "greater_equal", "equal", "not_equal", "prelu")
READS = dict.fromkeys(OPERATIONS, 1) | dict.fromkeys(BINARY, 2) | dict.fromkeys(("where", "addcmul", "addcdiv"), 3)

# Parameters of activations, and what they are in torch.
FUNCTIONS: dict[str, tuple[tuple[float, float], Callable[[torch.Tensor], torch.Tensor]]] = {
    "relu": ((0, 0), F.relu),
    "gelu": ((0, 0), F.gelu),
    "gelu_tanh": ((0, 0), lambda x: F.gelu(x, approximate="tanh")),
    "silu": ((0, 0), F.silu),
    "tanh": ((0, 0), torch.tanh),
    "sigmoid": ((0, 0), torch.sigmoid),
    "clamp": ((-0.5, 1.25), lambda x: x.clamp(-0.5, 1.25)),
    "leaky_relu": ((0.2, 0), lambda x: F.leaky_relu(x, 0.2)),
    "elu": ((0.7, 0), lambda x: F.elu(x, 0.7)),
    "hardswish": ((0, 0), F.hardswish),
    "hardsigmoid": ((0, 0), F.hardsigmoid),
    "mish": ((0, 0), F.mish),
    "softplus": ((2, 20), lambda x: F.softplus(x, 2, 20)),
}


def pointwise(
    program: list[Instruction],
    inputs: Tensors,
    result: torch.Tensor,
    constants: Tensors = (),
    axis: int = -1,
    threads: int = 1,
) -> torch.Tensor:
    """The program's result, written to `result`."""
    addresses = [(c.data_ptr(), c.numel()) for c in constants]
    kernels.Pointwise(program, len(inputs), addresses, axis).run(list(inputs), [result], threads)
    return result


def view_of(shape: Sequence[int], stride: Sequence[int], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A view of memory that holds `fill`, between two guards, and the memory."""
    room = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    memory = torch.full((room + 2 * GUARD,), fill)
    return memory.as_strided(tuple(shape), tuple(stride), GUARD), memory


def guarded(values: torch.Tensor) -> torch.Tensor:
    """The same values and strides in memory that holds NaN wherever the view has no value."""
    return view_of(values.shape, values.stride(), torch.nan)[0].copy_(values)


def result_like(shape: Sequence[int], stride: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A view to be written, and all of its memory, which holds the sentinel."""
    return view_of(shape, stride, SENTINEL)


def untouched(view: torch.Tensor, memory: torch.Tensor) -> bool:
    """Whether nothing but the view was written."""
    view.fill_(SENTINEL)
    return bool((memory == SENTINEL).all())


def values(count: int, generator: torch.Generator, special: bool) -> torch.Tensor:
    """Numbers, some of them special."""
    x = random(generator, (count,), 2.0)
    if special:
        where = torch.randperm(count, generator=generator)[: count // 2]
        x[where] = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), (len(where),), generator=generator)]
    return x


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """The same values, NaN being one."""
    return torch.equal(actual.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5)) and torch.equal(
        actual.isnan(), expected.isnan()
    )


def test_names_are_those_of_the_kernel() -> None:
    assert tuple(kernels.Pointwise.opcodes()) == OPCODES
    assert set(OPCODES) == {*OPERATIONS, "activation"}
    assert set(ACTIVATIONS) == {*FUNCTIONS, "none", "softmax", "log_softmax"}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("special", [False, True], ids=["normal", "special"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str, special: bool, generator: torch.Generator) -> None:
    p = 1.0 if special else 0.75  # 0.75 infinity - infinity may be rounded in another order
    for count in (0, 1, 15, 16, 17, 31, 33, 1023, 1024, 1057):
        inputs = [guarded(values(count, generator, special)) for _ in range(3)]
        y, memory = result_like((count,), (1,))
        pointwise([instruction(name, *range(READS[name]), p=p)], inputs, y)
        expected = OPERATIONS[name](*inputs, p)
        if not special:
            assert_close_to_reference(y, expected, OPERATIONS[name](*(x.double() for x in inputs), p))
        else:
            finite = expected.isfinite()
            assert same(y.where(~finite, 0.0), expected.where(~finite, 0.0))
            assert torch.equal(y[finite].signbit(), expected[finite].signbit())
            assert torch.allclose(y[finite], expected[finite], rtol=1e-6, atol=0)
        assert untouched(y, memory)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation(name: str, generator: torch.Generator) -> None:
    (p, q), function = FUNCTIONS[name]
    for count in (1, 17, 1057):
        x = guarded(values(count, generator, False))
        y, memory = result_like((count,), (1,))
        pointwise([activation(name, 0, p, q)], [x], y)
        assert_close_to_reference(y, function(x), function(x.double()))
        assert untouched(y, memory)


def ulps(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error in units of the last place of the exact results, those of fp32."""
    unit = (exact.abs().clamp_min(2.0**-126).log2().floor() - 23).exp2()
    finite = exact.abs() < torch.finfo(torch.float32).max
    return float(((actual - exact).abs() / unit)[finite].max())


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "erf", "sin", "cos", "sqrt", "rsqrt"])
def test_accuracy_over_all_magnitudes(name: str) -> None:
    """No fit is off at some place: at most two units more than torch's own function, denormals included."""
    magnitudes = torch.arange(1, 0x7F800000, 10007, dtype=torch.int32).view(torch.float32)
    x = torch.cat([magnitudes, -magnitudes, torch.linspace(-3, 3, 10000), torch.linspace(0.5, 2, 10000)])
    exact = OPERATIONS[name](x.double(), None, None, 1)
    x, exact = x[~exact.isnan()], exact[~exact.isnan()]
    found = ulps(pointwise([instruction(name, 0)], [x], torch.empty_like(x)), exact)
    assert found <= ulps(OPERATIONS[name](x, None, None, 1), exact) + 2


EXACT = ("add", "sub", "mul", "div", "maximum", "minimum", "greater", "abs", "neg", "floor", "square", "where")


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...], broadcast: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes, some of them 1 where that may be, and strides: axes in any order of memory, with gaps."""
    sizes = [1 if broadcast and draw(st.booleans()) else size for size in shape]
    strides, stride = [0] * len(sizes), 1
    for axis in draw(st.permutations(range(len(sizes)))):
        stride *= draw(st.sampled_from([1, 1, 1, 2]))
        strides[axis] = stride
        stride *= max(sizes[axis], 1)
    skipped = draw(st.integers(0, len(sizes) - 1)) if broadcast and sizes and draw(st.booleans()) else 0
    return tuple(sizes[skipped:]), tuple(strides[skipped:])


SIZES = st.sampled_from([0, 1, 2, 3, 5, 15, 16, 17, 33, 64])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """A program, the layouts of its inputs and its result, the axis of constants, and a seed."""
    shape = tuple(draw(st.lists(SIZES, min_size=0, max_size=4)))
    while torch.Size(shape).numel() > 40000:
        shape = shape[1:]
    count = draw(st.integers(1, 4))
    inputs = [draw(layouts(shape, True)) for _ in range(count)]
    constants = draw(st.integers(0, 2)) if shape and min(shape) > 0 else 0
    program = []
    for i in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from(EXACT))
        program.append((name, [draw(st.integers(0, count + constants + i - 1)) for _ in range(READS[name])]))
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if shape else -1
    return shape, inputs, draw(layouts(shape, False)), constants, axis, program, draw(st.integers(0, 2**30))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_programs(case: tuple[Any, ...]) -> None:
    """Programs, sizes, strides and broadcasts of any kind: torch's bits, alone and on threads."""
    shape, inputs, (_, stride), constants, axis, program, seed = case
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        guarded(torch.empty_strided(sizes, strides).copy_(random(generator, sizes))) for sizes, strides in inputs
    ]
    vectors = [random(generator, (shape[axis],)) for _ in range(constants)]
    along = [1] * len(shape)
    if shape:
        along[axis] = shape[axis]
    registers = [t.expand(shape) for t in tensors] + [v.view(along).expand(shape) for v in vectors]
    for name, reads in program:
        registers.append(OPERATIONS[name](*([registers[r] for r in reads] + [None, None])[:3], 1))
    instructions = [instruction(name, *reads) for name, reads in program]
    for threads in (1, 3):
        y, memory = result_like(shape, stride)
        pointwise(instructions, tensors, y, vectors, axis, threads)
        assert same(y, registers[-1])
        assert untouched(y, memory)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, 16, 17, 35, 70]), max_size=5), st.data())
def test_copy(sizes: list[int], data: st.DataObject) -> None:
    """Any strides on both sides, axes that are broadcast among them."""
    while torch.Size(sizes).numel() > 40000:
        sizes = sizes[1:]
    shape = tuple(sizes)
    (_, x_stride), (_, y_stride) = data.draw(layouts(shape, False)), data.draw(layouts(shape, False))
    x = guarded(torch.empty_strided(shape, x_stride).copy_(torch.arange(torch.Size(shape).numel()).view(shape)))
    if shape and data.draw(st.booleans()):
        x = x[..., :1].expand(shape)
    for threads in (1, 3):
        y, memory = result_like(shape, y_stride)
        kernels.Copy().run([x], [y], threads)
        assert torch.equal(y, x)
        assert untouched(y, memory)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16, 37, 64, 300])
@pytest.mark.parametrize("pixels", [(1, 1), (1, 5), (3, 7), (14, 14), (57, 61)], ids=str)
def test_copy_between_layouts(channels: int, pixels: tuple[int, int], generator: torch.Generator) -> None:
    """Contiguous maps to channels last and back, to and from a part of wider pixels."""
    x = random(generator, (2, channels, *pixels))
    last = x.contiguous(memory_format=torch.channels_last)
    wide = torch.empty(2, *pixels, channels + 5).permute(0, 3, 1, 2)[:, 2:-3].copy_(x)
    for source in (x, last, wide):
        for target in (x, last, wide):
            y, memory = result_like(target.shape, target.stride())
            kernels.Copy().run([guarded(source)], [y], 2)
            assert torch.equal(y, x)
            assert untouched(y, memory)


def test_large_tensors_on_threads(generator: torch.Generator) -> None:
    """What is divided into many chunks."""
    x = random(generator, (2, 64, 56, 56)).contiguous(memory_format=torch.channels_last)
    gate, scale = random(generator, (2, 64, 1, 1)), random(generator, (64,))
    program = [instruction("mul", 0, 1), instruction("mul", 3, 2), instruction("add", 4, 0)]
    for threads in (1, 2, 5):
        y = pointwise(program, [x, gate], torch.empty_like(x), [scale], 1, threads)
        assert torch.equal(y, x * gate * scale.view(-1, 1, 1) + x)
        back = torch.empty(2, 64, 56, 56)
        kernels.Copy().run([y], [back], threads)
        assert torch.equal(back, y)


CHAIN = [
    instruction("mul", 0, 1),
    instruction("sin", 3),
    instruction("exp", 4),
    activation("gelu", 5),
    instruction("log1p", 6),
    instruction("addcmul", 7, 0, 2, p=0.3),
]


def test_same_bits_whatever_the_batch_the_threads_and_the_instruction_set(generator: torch.Generator) -> None:
    rows, features = 100, 50
    x, y = random(generator, (rows, features), 3), random(generator, (rows, 1))
    scale = random(generator, (features,))
    run = lambda a, b, threads: pointwise(CHAIN, [a, b], torch.empty_like(a), [scale], -1, threads)  # noqa: E731
    expected = run(x, y, 1)
    before = kernels.isa()
    for isa in ISAS:
        kernels.select_isa(isa)
        assert torch.equal(run(x, y, 3), expected), isa
        for row in (0, 99):
            assert torch.equal(run(x[row : row + 1], y[row : row + 1], 1), expected[row : row + 1]), isa
    kernels.select_isa(before)


def test_constants_are_copied(generator: torch.Generator) -> None:
    x, scale = random(generator, (3, 20)), random(generator, (20,))
    expected = x * scale
    kernel = kernels.Pointwise([instruction("mul", 0, 1)], 1, [(scale.data_ptr(), 20)], -1)
    scale.zero_()
    y = torch.empty_like(x)
    kernel.run([x], [y], 1)
    assert torch.equal(y, expected)
    assert kernel.packed_bytes == 32 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1), r"Pointwise: program: needs at least one instruction, got none"),
        (([instruction("neg", 0)], 0), r"Pointwise: inputs: needs 1 to 8, got 0"),
        (([instruction("neg", 0)], 9), r"Pointwise: inputs: needs 1 to 8, got 9"),
        (([(999, 0, 0, 0, 0, 0)], 1), r"Pointwise: program\[0\]: needs an opcode below \d+, got 999"),
        (([instruction("neg", 0), instruction("add", 0, 2)], 1), r"program\[1\]: needs registers below 2, got 2"),
        (([instruction("neg", -1)], 1), r"program\[0\]: needs registers below 1, got -1"),
        (([activation("softmax", 0)], 1), r"program\[0\]: needs the number of an elementwise activation, got 7"),
        (([instruction("neg", 0)], 1, [(0, 0)]), r"Pointwise: constants: needs at least one value each, got 0"),
        (([instruction("neg", 0)], 1, [(0, 0)] * 9), r"Pointwise: constants: needs at most 8, got 9"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.Pointwise(*arguments)
