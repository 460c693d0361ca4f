"""fastgraph::conv_pool against float64, on every ISA of the machine."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import fastgraph.kernels.conv_pool.reference as reference
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from tests.reference import check_gradients, check_op, random

conv_pool = torch.ops.fastgraph.conv_pool.default

# name: (channels in, out), (H, W), kernel, stride, padding, dilation, pool kernel, stride, padding, ceil_mode
CASES = {
    "net": ((3, 16), (60, 482), (3, 3), (1, 1), (0, 0), (1, 1), (3, 3), (2, 2), (0, 0), False),
    "lenet_1": ((1, 20), (28, 28), (5, 5), (1, 1), (0, 0), (1, 1), (2, 2), (2, 2), (0, 0), False),
    "lenet_2": ((20, 50), (12, 12), (5, 5), (1, 1), (0, 0), (1, 1), (2, 2), (2, 2), (0, 0), False),
    "one_channel": ((1, 1), (30, 70), (5, 5), (1, 1), (0, 0), (1, 1), (2, 2), (2, 2), (0, 0), False),
    "resnet": ((3, 64), (64, 66), (7, 7), (2, 2), (3, 3), (1, 1), (3, 3), (2, 2), (1, 1), False),
    "many_taps": ((70, 9), (9, 20), (3, 3), (1, 1), (1, 1), (1, 1), (2, 2), (2, 2), (0, 0), False),
    "dilated": ((2, 5), (31, 37), (3, 2), (1, 2), (2, 1), (2, 3), (2, 3), (1, 3), (1, 1), False),
    "ceil": ((2, 7), (23, 33), (2, 3), (3, 1), (0, 0), (1, 1), (3, 3), (2, 2), (1, 1), True),
    "pool_apart": ((2, 3), (40, 50), (3, 3), (1, 1), (0, 0), (1, 1), (2, 2), (5, 4), (0, 0), True),
    "pool_dense": ((2, 3), (20, 30), (1, 1), (1, 1), (0, 0), (1, 1), (13, 13), (1, 1), (6, 6), False),
    "one_pixel": ((3, 4), (3, 3), (3, 3), (1, 1), (0, 0), (1, 1), (1, 1), (1, 1), (0, 0), False),
    "all_padding": ((2, 3), (1, 1), (5, 5), (1, 1), (4, 4), (1, 1), (2, 2), (2, 2), (1, 1), True),
}


def arguments(generator: torch.Generator, name: str, batch: int = 2, bias: bool = True) -> tuple:
    (channels, out), size, kernel, *geometry = CASES[name]
    weight = random(generator, (out, channels, *kernel), (channels * kernel[0] * kernel[1]) ** -0.5)
    x = random(generator, (batch, channels, *size))
    return (
        x,
        weight,
        random(generator, (out,)) if bias else None,
        *(list(g) if isinstance(g, tuple) else g for g in geometry),
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.usefixtures("isa")
def test_geometries(name: str, bias: bool, generator: torch.Generator) -> None:
    y = check_op(conv_pool, reference.conv_pool, *arguments(generator, name, bias=bias))
    assert (y > 0).float().mean() > 0.02 or name == "all_padding"


@pytest.mark.parametrize("width", [5, 6, 31, 32, 33, 34, 35, 36, 37, 38, 63, 64, 65, 66, 67, 68, 69, 70, 98, 99, 100])
@pytest.mark.parametrize(("pool", "padding"), [(2, 0), (2, 1), (3, 0), (3, 1)])
@pytest.mark.usefixtures("isa")
def test_widths_around_the_blocks(width: int, pool: int, padding: int, generator: torch.Generator) -> None:
    """Windows that lie across two blocks of columns, at the first column and at the last."""
    x, weight = random(generator, (1, 2, 9, width)), random(generator, (7, 2, 3, 3), 0.3)
    bias = random(generator, (7,))
    geometry = ([1, 1], [0, 0], [1, 1], [pool] * 2, [2, 2], [padding] * 2)
    for ceil_mode in (False, True):
        check_op(conv_pool, reference.conv_pool, x, weight, bias, *geometry, ceil_mode)


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 5),
    out=st.integers(1, 20),
    size=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pool_kernel=pairs,
    pool_stride=pairs,
    pool_padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil_mode=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@example(  # a bias of -3.06 cancels sums of 3.3: the largest result is 0.33, of terms whose magnitudes sum to 7.4
    batch=1,
    channels=3,
    out=1,
    size=(11, 12),
    kernel=(1, 5),
    stride=(1, 2),
    padding=(0, 3),
    dilation=(2, 1),
    pool_kernel=(3, 2),
    pool_stride=(4, 4),
    pool_padding=(0, 0),
    ceil_mode=False,
    threads=1,
    seed=41071,
)
@settings(max_examples=250, deadline=None)
def test_any_geometry(
    batch,
    channels,
    out,
    size,
    kernel,
    stride,
    padding,
    dilation,
    pool_kernel,
    pool_stride,
    pool_padding,
    ceil_mode,
    threads,
    seed,
):
    assume(all(2 * p <= k for p, k in zip(pool_padding, pool_kernel, strict=True)))
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    weight = random(generator, (out, channels, *kernel), (channels * kernel[0] * kernel[1]) ** -0.5)
    bias = random(generator, (out,)) if seed % 2 else None
    geometry = [list(v) for v in (stride, padding, dilation, pool_kernel, pool_stride, pool_padding)]
    x = random(generator, (batch, channels, *size))
    try:
        reference.conv_pool(x, weight, bias, *geometry, ceil_mode)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="input: needs a larger"):
            conv_pool(x, weight, bias, *geometry, ceil_mode)
    else:
        check_op(conv_pool, reference.conv_pool, x, weight, bias, *geometry, ceil_mode)


@pytest.mark.parametrize("name", ["lenet_1", "resnet", "pool_apart", "ceil"])
@pytest.mark.usefixtures("isa")
def test_nan_and_infinities_go_where_eager_sends_them(name: str, generator: torch.Generator) -> None:
    x, weight, bias, *geometry = arguments(generator, name)
    for i, special in enumerate([float("nan"), float("inf"), float("-inf"), -float("nan")]):
        x[i % 2, 0, 5 + 3 * i, 7 + 4 * i] = special
    check_op(conv_pool, reference.conv_pool, x, weight, bias, *geometry)


@pytest.mark.usefixtures("isa")
def test_weights_whose_sum_is_beyond_the_range(generator: torch.Generator) -> None:
    """Winograd's form adds weights up; the convolution itself never does."""
    x = random(generator, (1, 1, 6, 40), 0.01)
    weight = torch.full((2, 1, 3, 3), 3e38)
    check_op(conv_pool, reference.conv_pool, x, weight, None, [1, 1], [0, 0], [1, 1], [2, 2], [2, 2], [0, 0], False)


@pytest.mark.usefixtures("isa")
def test_negative_zero_never_wins() -> None:
    """With denormals flushed, 2e-38 - 2.5e-38 becomes -0, whose bit pattern is above every positive number's."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormals")
    try:
        x = torch.tensor([2.5e-38, 0.0]).repeat(20)[None, None, None].expand(1, 1, 2, 40)
        weight, bias = -torch.ones(1, 1, 1, 1), torch.tensor([2e-38])
        y = conv_pool(x, weight, bias, [1, 1], [0, 0], [1, 1], [2, 2], [2, 2], [0, 0], False)
        assert torch.equal(y, bias.expand(1, 1, 1, 20))
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.usefixtures("isa")
def test_strides(generator: torch.Generator) -> None:
    x, weight, bias, *geometry = arguments(generator, "lenet_2")
    expected = conv_pool(x, weight, bias, *geometry)
    wide = random(generator, (2, 20, 12, 24))
    wide[..., ::2] = x
    for view in (
        x.to(memory_format=torch.channels_last),
        wide[..., ::2],
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        assert torch.equal(conv_pool(view, weight, bias, *geometry), expected)
    assert torch.equal(conv_pool(x, weight.to(memory_format=torch.channels_last), bias, *geometry), expected)


def test_empty_batch(generator: torch.Generator) -> None:
    check_op(conv_pool, reference.conv_pool, *arguments(generator, "lenet_1", batch=0))


def test_opcheck(generator: torch.Generator) -> None:
    for bias in (True, False):
        x, weight, b, *geometry = arguments(generator, "dilated", bias=bias)
        tensors = [t if t is None else t.requires_grad_() for t in (x, weight, b)]
        torch.library.opcheck(conv_pool, (*tensors, *geometry))


def test_gradients(generator: torch.Generator) -> None:
    x, weight, bias, *geometry = arguments(generator, "ceil")
    check_gradients(conv_pool, reference.conv_pool, (x, weight, bias, *geometry))
    small = [t.double().requires_grad_() for t in (x[:1, :, :7, :7], weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: conv_pool(*t, *geometry), small)


GOOD = dict(
    input=torch.ones(1, 2, 8, 8),
    weight=torch.ones(3, 2, 3, 3),
    bias=torch.ones(3),
    stride=[1, 1],
    padding=[0, 0],
    dilation=[1, 1],
    pool_kernel_size=[2, 2],
    pool_stride=[2, 2],
    pool_padding=[0, 0],
    ceil_mode=False,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(input=torch.ones(2, 8, 8)), r"input: needs shape \[B, 2, H, W\], got \[2, 8, 8\]"),
        (dict(input=torch.ones(1, 3, 8, 8)), r"input: needs shape \[B, 2, H, W\], got \[1, 3, 8, 8\]"),
        (dict(input=torch.ones(1, 2, 2, 8)), r"input: needs a larger H"),
        (dict(input=torch.ones(1, 2, 8, 3)), r"input: needs a larger W"),
        (
            dict(input=torch.ones(1, 2, 8, 8, dtype=torch.int32)),
            r"input: needs a floating-point dtype, got torch.int32",
        ),
        (
            dict(input=torch.ones(1, 2, 8, 8).half()),
            r"input: needs the dtype of weight, torch.float32, got torch.float16",
        ),
        (dict(input=torch.ones(1, 2, 8, 8, device="meta")), r"input: needs the device of weight, cpu, got meta"),
        (dict(weight=torch.ones(3, 2, 3)), r"weight: needs shape \[O, C, kernel_h, kernel_w\], got \[3, 2, 3\]"),
        (dict(bias=torch.ones(4)), r"bias: needs shape \[3\], got \[4\]"),
        (dict(stride=[0, 1]), r"stride: needs two numbers of at least 1, got \[0, 1\]"),
        (dict(pool_padding=[2, 0]), r"pool_padding: needs at most half of pool_kernel_size \[2, 2\], got \[2, 0\]"),
        (dict(pool_kernel_size=[17, 1], pool_stride=[1, 1]), r"17 windows of the pool lie on one row"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_errors_name_the_argument(change: dict, message: str) -> None:
    assert conv_pool(*GOOD.values()).shape == (1, 3, 3, 3)
    with pytest.raises(RuntimeError, match=message):
        conv_pool(*{**GOOD, **change}.values())


def test_a_bound_op_gives_the_ops_bits(generator: torch.Generator) -> None:
    x, weight, bias, *geometry = arguments(generator, "lenet_1")
    bound = Bound(Op.named("conv_pool"), weight, bias, *geometry)
    for image in (x, x[:, :, :20].contiguous(), x.flip(3), x[:1], x[:0]):
        assert torch.equal(bound(image), conv_pool(image, weight, bias, *geometry))
    with pytest.raises(RuntimeError, match="needs a larger W"):
        bound(x[..., :4].contiguous())


@pytest.mark.parametrize("outlier", [1.0, 30.0, 1e3, 1e6, 1e30])
@pytest.mark.usefixtures("isa")
def test_a_pixel_far_above_the_others(outlier: float, generator: torch.Generator) -> None:
    """Winograd sums hold what they later cancel; nothing may stay where ReLU clips the outputs that see the pixel."""
    geometry = ([1, 1], [0, 0], [1, 1], [3, 3], [2, 2], [0, 0], False)
    x = random(generator, (1, 2, 40, 90))
    x[0, 0, 20, 41] = outlier
    clipped = torch.zeros(4, 2, 3, 3)
    clipped[..., 0] = -random(generator, (4, 2, 3)).abs()
    for weight in (clipped, random(generator, (4, 2, 3, 3), 0.25)):
        check_op(conv_pool, reference.conv_pool, x, weight, torch.ones(4), *geometry)
