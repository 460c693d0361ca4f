"""The ways that are measured against each other compute the same."""

from collections.abc import Iterable
from itertools import islice

import torch

from fastgraph.kernels.conv_pool_mlp import cuda as conv_pool_mlp
from fastgraph.kernels.cuda import choices
from fastgraph.kernels.cuda.measure import Trials, measure
from tests.reference import layers
from tests.triton_interpreter.checks import GEOMETRIES, Launcher, conv_arguments, generator, target

FEW = 2  # ways of each group: the interpreter is slow


def test_every_way_gives_the_same_numbers() -> None:
    source = generator()
    convolution = conv_arguments(source, *GEOMETRIES["pool_apart"], batch=1)
    weights, biases = layers(source, [6, 20, 3])
    arguments = (*convolution, weights, biases, ["relu", "none"])
    keys: list[str] = []
    groups: Iterable[Trials] = conv_pool_mlp.trials(*arguments, target=target())
    for trials in groups:
        ways = list(islice(trials.ways, FEW))
        assert len(ways) > 1
        results = [way.call() for way in ways]
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)
        keys.append(trials.key.split()[0])
    assert keys == ["conv_pool", "linear", "linear", "mlp", "conv_pool_mlp"]


def test_the_measured_tile_is_launched() -> None:
    """The slowest to be tried is made the fastest, and then runs."""
    source = generator()
    convolution = conv_arguments(source, *GEOMETRIES["pool_apart"], batch=1)
    weights, biases = layers(source, [6, 3])
    arguments = (*convolution, weights, biases, ["relu"])
    exact = conv_pool_mlp.run(*arguments, target=target())
    launcher = Launcher()
    trials = list(conv_pool_mlp.trials(*arguments, target=target()))[-1]
    ways = list(trials.ways)
    times = {id(way.call): float(len(ways) - i) for i, way in enumerate(ways)}
    best = measure(Trials(trials.key, trials.rows, ways), lambda call: times[id(call)])
    assert best.tile == ways[-1].tile
    assert choices.chosen(trials.key, 1) == best
    y = conv_pool_mlp.run(*arguments, target=target(launch=launcher))
    torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5)
    assert [options["num_warps"] for options in launcher.launched] == [best.tile.warps]
