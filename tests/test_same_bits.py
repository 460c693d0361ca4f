"""fp32 on the CPU: a row's bits depend on the row and the weights alone."""

import ctypes

import pytest
import torch

from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from fastgraph.models import DeepLearningModel, Net
from tests.conftest import ISAS
from tests.reference import layers, random

mlp = torch.ops.fastgraph.mlp.default


def mlp_arguments(generator: torch.Generator) -> tuple:
    weights, biases = layers(generator, [784, 300, 77, 10])
    return weights, biases, ["gelu", "tanh", "softmax"]


def image_arguments(generator: torch.Generator) -> tuple:
    weights, biases = layers(generator, [28, 40, 3])
    geometry = ([1, 1], [1, 0], [1, 1], [3, 3], [2, 2], [1, 0], False)
    convolution = random(generator, (11, 3, 3, 3), 27**-0.5), random(generator, (11,))
    return (*convolution, *geometry, weights, biases, ["relu", "log_softmax"])


@pytest.mark.usefixtures("isa")
def test_batch_place_and_threads_of_rows(generator: torch.Generator) -> None:
    arguments = mlp_arguments(generator)
    x = random(generator, (33, 784))
    torch.set_num_threads(1)
    rows = [mlp(x[i : i + 1], *arguments)[0] for i in range(33)]
    expected = torch.stack(rows)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        for batch in range(1, 34):
            assert torch.equal(mlp(x[:batch], *arguments), expected[:batch]), (batch, threads)
        order = torch.randperm(33, generator=generator)
        assert torch.equal(mlp(x[order], *arguments), expected[order])
        many = x.repeat(20, 1)
        assert torch.equal(mlp(many, *arguments), expected.repeat(20, 1))


@pytest.mark.usefixtures("isa")
def test_batch_place_and_threads_of_images(generator: torch.Generator) -> None:
    arguments = image_arguments(generator)
    x = random(generator, (5, 3, 70, 60))
    torch.set_num_threads(1)
    op = torch.ops.fastgraph.conv_pool_mlp.default
    expected = torch.stack([op(image[None], *arguments) for image in x])
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        for batch in range(1, 6):
            assert torch.equal(op(x[:batch], *arguments), expected[:batch].flatten(0, 1)), (batch, threads)
    # Strips are cut by the batch and the threads, but a pooled row does not know its strip.
    pooled = torch.ops.fastgraph.conv_pool.default(x, *arguments[:-3])
    torch.set_num_threads(1)
    top = torch.ops.fastgraph.conv_pool.default(x[:1, :, :40].contiguous(), *arguments[:-3])
    assert torch.equal(top[:, :, :-1], pooled[:1, :, : top.shape[2] - 1])


@pytest.mark.skipif(len(ISAS) < 2, reason="this machine has one ISA")
@pytest.mark.parametrize("batch", [1, 2, 7, 16, 33])
def test_every_isa(batch: int, generator: torch.Generator) -> None:
    from fastgraph.kernels import native

    module = native.kernels()
    assert module is not None
    before = module.isa()
    op = torch.ops.fastgraph.conv_pool_mlp.default
    x, images = random(generator, (batch, 784)), random(generator, (min(batch, 3), 3, 70, 60))
    arguments, image = mlp_arguments(generator), image_arguments(generator)
    results = []
    for name in ISAS:
        assert module.select_isa(name)
        results.append((mlp(x, *arguments), op(images, *image)))
    module.select_isa(before)
    for result in results[1:]:
        assert torch.equal(results[0][0], result[0])
        assert torch.equal(results[0][1], result[1])


def test_every_activation_on_every_isa(generator: torch.Generator) -> None:
    from fastgraph.kernels import native
    from fastgraph.kernels.mlp.op import ACTIVATIONS

    module = native.kernels()
    if module is None:
        pytest.skip("no compiled kernels")
    before = module.isa()
    x = torch.cat([torch.linspace(-110, 110, 5000), random(generator, (5000,)), torch.tensor([0.0, -0.0, 1e-42, 3e38])])
    rows = x[: len(x) // 4 * 4].view(-1, 4).contiguous()
    for activation in ACTIVATIONS:
        arguments = [torch.eye(4)], [torch.zeros(4)], [activation]
        results = []
        for name in ISAS:
            module.select_isa(name)
            results.append(Bound(Op.named("mlp"), *arguments)(rows))
        assert all(torch.equal(results[0], r) for r in results[1:]), activation
    module.select_isa(before)


@pytest.mark.usefixtures("isa")
def test_run_to_run_with_busy_threads(generator: torch.Generator) -> None:
    torch.set_num_threads(4)
    arguments = mlp_arguments(generator)
    x = random(generator, (64, 784))
    expected = mlp(x, *arguments)
    assert all(torch.equal(mlp(x, *arguments), expected) for _ in range(50))


@pytest.mark.usefixtures("isa")
def test_denormal_mode_follows_the_caller_into_the_workers(generator: torch.Generator) -> None:
    """All rows are the same and denormal: a worker in another mode than the caller's would give other bits."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormals")
    try:
        torch.set_num_threads(4)
        x = torch.full((400, 300), 1e-30)
        weights = [torch.full((200, 300), 1e-12)]
        for _ in range(20):
            y = mlp(x, weights, [None], ["none"])
            assert (y == 0).all()
    finally:
        torch.set_flush_denormal(False)
    assert (mlp(x, weights, [None], ["none"]) > 0).all()


@pytest.mark.usefixtures("isa")
def test_rounding_mode_follows_the_caller_into_the_workers(generator: torch.Generator) -> None:
    """All rows are the same: one that was rounded to nearest by a worker would stand out."""
    libm, upward, nearest = ctypes.CDLL("libm.so.6"), 0x800, 0
    torch.set_num_threads(4)
    x, weights = random(generator, (1, 300)).expand(400, 300).contiguous(), [random(generator, (200, 300))]
    expected = mlp(x, weights, [None], ["none"])
    try:
        assert libm.fesetround(upward) == 0
        results = [mlp(x, weights, [None], ["none"]) for _ in range(20)]
    finally:
        libm.fesetround(nearest)
    for y in results:
        assert torch.equal(y, y[:1].expand_as(y))
        assert not torch.equal(y, expected)
    assert torch.equal(mlp(x, weights, [None], ["none"]), expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
@pytest.mark.parametrize("pool_stride", [[2, 2], [1, 3], [4, 2]], ids=str)
def test_special_pixels_change_their_own_rows_alone(
    special: float, pool_stride: list[int], generator: torch.Generator
) -> None:
    """Rows that Winograd's form must not compute are computed directly; their neighbours do not notice, however the
    image is cut into strips."""
    height, pool_kernel = 75, 3
    geometry = [1, 1], [1, 1], [1, 1], [pool_kernel, pool_kernel], pool_stride, [1, 1], False
    weight, bias = random(generator, (9, 3, 3, 3), 27**-0.5), random(generator, (9,))
    clean = random(generator, (2, 3, height, 50))
    image = clean.clone()
    for n, row in ((0, 3), (0, 31), (0, 40), (1, height - 1)):
        image[n, row % 3, row, 7 + row // 2] = special
    op = torch.ops.fastgraph.conv_pool.default
    torch.set_num_threads(1)
    expected, before = op(image, weight, bias, *geometry), op(clean, weight, bias, *geometry)
    changed = set()
    for n, row in ((0, 3), (0, 31), (0, 40), (1, height - 1)):
        for p in range(expected.shape[2]):
            top = p * pool_stride[0] - 1  # of the convolution; one more row of the image on either side
            if top - 1 <= row <= top + pool_kernel:
                changed.add((n, p))
    assert 0 < len(changed) < expected.shape[2]
    for n in range(2):
        for p in range(expected.shape[2]):
            if (n, p) not in changed:
                assert torch.equal(expected[n, :, p], before[n, :, p]), (n, p)
    if special != special or special > 0:
        assert not torch.equal(expected, before)
    bits = expected.nan_to_num(nan=-1.0, posinf=-2.0)
    for threads in (1, 2, 3, 4, 5):
        torch.set_num_threads(threads)
        assert torch.equal(op(image, weight, bias, *geometry).nan_to_num(nan=-1.0, posinf=-2.0), bits), threads
        alone = op(image[:1], weight, bias, *geometry).nan_to_num(nan=-1.0, posinf=-2.0)
        assert torch.equal(alone, bits[:1]), threads


def test_models(generator: torch.Generator) -> None:
    import fastgraph

    deep, net = DeepLearningModel().eval(), Net().eval()
    fast_deep = fastgraph.optimize(deep, (torch.zeros(2, 784),), verify=False)
    fast_net = fastgraph.optimize(net, (torch.zeros(1, 3, 720, 480),), verify=False)
    with torch.no_grad():
        x, photo = random(generator, (33, 784)), random(generator, (2, 3, 720, 480))
        assert torch.equal(fast_deep(x)[5:6], fast_deep(x[5:6]))
        assert torch.equal(fast_net(photo)[5728:], fast_net(photo[1:]))
