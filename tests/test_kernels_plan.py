"""The native plan: a program of kernels over one arena gives the bits of its kernels one after the other."""

import gc
import resource
import threading
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgraph.kernels import native
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from tests.reference import layers, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")


def module() -> Any:
    return native.kernels()


def linear(generator: torch.Generator, inputs: int, outputs: int) -> Any:
    weights, biases = layers(generator, [inputs, outputs])
    return Bound(Op.named("mlp"), weights, biases, ["relu"]).kernel


def made(
    inputs: list[int], outputs: list[int], steps: list[Any], sizes: list[list[int]], memory: list[int] | None = None
) -> Any:
    """A plan whose slots are contiguous, each in a memory of its own unless `memory` says which."""
    plan = module().Plan(len(inputs))
    admit(plan, inputs, outputs, steps, sizes, memory)
    return plan


def admit(
    plan: Any,
    inputs: list[int],
    outputs: list[int],
    steps: list[Any],
    sizes: list[list[int]],
    memory: list[int] | None = None,
) -> None:
    owners = memory or list(range(len(sizes)))
    strides = [list(torch.empty(size).stride()) for size in sizes]
    slots = [(*both, owner, 0, 0) for both, owner in zip(zip(sizes, strides, strict=True), owners, strict=True)]
    plan.admit(slots, inputs, outputs, steps)


def one_by_one(steps: list[Any], slots: list[torch.Tensor | None], sizes: list[list[int]]) -> None:
    for kernel, (source,), (target,) in steps:
        slots[target] = torch.empty(sizes[target])
        x = slots[source]
        assert x is not None
        kernel.run([x], [slots[target]], 1)


def run(plan: Any, inputs: list[torch.Tensor], sizes: list[list[int]], threads: int = 1) -> list[torch.Tensor]:
    results = [torch.full(size, float("nan")) for size in sizes]
    plan.run(inputs, results, threads)
    return results


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_a_random_program(data: st.DataObject, seed: int) -> None:
    """Any tree of layers: each reads any value before it, results are any of them."""
    generator = torch.Generator().manual_seed(seed)
    features = [data.draw(st.integers(1, 40), label="features")]
    steps = []
    for target in range(1, data.draw(st.integers(1, 12), label="steps") + 1):
        source = data.draw(st.integers(0, target - 1), label="source")
        features.append(data.draw(st.integers(1, 40), label="features"))
        steps.append((linear(generator, features[source], features[target]), [source], [target]))
    results = sorted(data.draw(st.sets(st.integers(1, len(steps)), min_size=1), label="results"))
    plan = module().Plan(1)
    for rows in (3, 1, 70):
        sizes = [[rows, f] for f in features]
        admit(plan, [0], results, steps, sizes)
        x = random(generator, (rows, features[0]))
        slots: list[torch.Tensor | None] = [x, *[None] * len(steps)]
        one_by_one(steps, slots, sizes)
        for threads in (1, 2):
            for slot, actual in zip(results, run(plan, [x], [sizes[r] for r in results], threads), strict=True):
                expected = slots[slot]
                assert expected is not None
                assert torch.equal(actual, expected)


def test_values_in_another_shape(generator: torch.Generator) -> None:
    """Convolution and pool, flattened without a copy, then layers."""
    weight, bias = random(generator, (6, 1, 5, 5)), random(generator, (6,))
    geometry = ([1, 1], [0, 0], [1, 1], [2, 2], [2, 2], [0, 0], False)
    conv = Bound(Op.named("conv_pool"), weight, bias, *geometry).kernel
    then = linear(generator, 6 * 12 * 12, 10)
    plan = module().Plan(1)
    for batch in (1, 5):
        sizes = [[batch, 1, 28, 28], [batch, 6, 12, 12], [batch, 864], [batch, 10]]
        admit(plan, [0], [3], [(conv, [0], [1]), (then, [2], [3])], sizes, [0, 1, 1, 3])
        x = random(generator, (batch, 1, 28, 28))
        pooled, expected = torch.empty(batch, 6, 12, 12), torch.empty(batch, 10)
        conv.run([x], [pooled], 1)
        then.run([pooled.flatten(1)], [expected], 1)
        assert torch.equal(run(plan, [x], [[batch, 10]])[0], expected)


def test_the_arena_holds_what_lives_at_the_same_time(generator: torch.Generator) -> None:
    """A chain needs its two largest neighbours, whatever its length."""
    kernels = [linear(generator, 64, 64) for _ in range(10)]
    steps = [(kernel, [i], [i + 1]) for i, kernel in enumerate(kernels)]
    plan = made([0], [10], steps, [[8, 64]] * 11)
    assert plan.arena_bytes([torch.empty(8, 64)]) == 2 * 8 * 64 * 4
    wide = made([0], [5, 10], steps, [[8, 64]] * 11)  # one that is a result is not in it
    assert wide.arena_bytes([torch.empty(8, 64)]) == 2 * 8 * 64 * 4


def test_a_large_arena_goes_back_with_the_call(generator: torch.Generator) -> None:
    """80 MB between two layers; a small one is kept."""
    steps = [(linear(generator, 4, 64), [0], [1]), (linear(generator, 64, 4), [1], [2])]
    plan = module().Plan(1)
    for rows, grows in ((4, 1 << 20), (330_000, 16 << 20)):
        sizes = [[rows, 4], [rows, 64], [rows, 4]]
        admit(plan, [0], [2], steps, sizes)
        x = random(generator, (rows, 4))
        slots: list[torch.Tensor | None] = [x, None, None]
        one_by_one(steps, slots, sizes)
        expected = slots[2]
        del slots
        before = resident()
        assert torch.equal(run(plan, [x], [sizes[2]])[0], expected)
        assert resident() - before < grows


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_kernels_live_as_long_as_the_plan(generator: torch.Generator) -> None:
    steps = [(linear(generator, 8, 8), [0], [1])]
    plan = made([0], [1], steps, [[1, 8]] * 2)
    x = random(generator, (1, 8))
    before = run(plan, [x], [[1, 8]])
    del steps
    gc.collect()
    assert torch.equal(run(plan, [x], [[1, 8]])[0], before[0])


def test_several_threads_and_new_sizes(generator: torch.Generator) -> None:
    """Each caller has an arena of its own; sizes may be admitted while others run."""
    steps = [(linear(generator, 32, 32), [i], [i + 1]) for i in range(4)]
    plan = module().Plan(1)
    inputs = [random(generator, (rows, 32)) for rows in range(1, 9)]
    expected = []
    for x in inputs:
        admit(plan, [0], [4], steps, [[len(x), 32]] * 5)
        expected.append(run(plan, [x], [[len(x), 32]])[0])
    wrong = []

    def call(i: int) -> None:
        for more in range(200):
            if not torch.equal(run(plan, [inputs[i]], [[i + 1, 32]], 2)[0], expected[i]):
                wrong.append(i)
            admit(plan, [0], [4], steps, [[100 + i + more, 32]] * 5)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("inputs", "outputs", "steps", "memory", "message"),
    [
        ([0], [2], [([1], [2])], [0, 1, 2], "read before it is written"),
        ([0], [1], [([0], [1]), ([0], [1])], [0, 1, 2], "written twice"),
        ([0], [2], [([0], [1])], [0, 1, 2], "a result is not written"),
        ([0], [0], [([0], [1])], [0, 1, 2], "a result is not written"),
        ([0], [1], [([0], [1])], [0, 0, 2], "in another one's memory"),
        ([0], [2], [([0], [1])], [0, 3, 2], "memory is out of range"),
        ([0], [2], [([0], [1])], [0, 1, 1], "in another one's memory"),
        ([0], [1], [([0], [3])], [0, 1, 2], "out of range"),
        ([0], [1], [([0, 0], [1])], [0, 1, 2], "another number of inputs"),
        ([0, 1], [2], [([0], [2])], [0, 1, 2], "inputs: needs 1 slots"),
    ],
)
def test_programs_that_make_no_sense(
    inputs: list[int],
    outputs: list[int],
    steps: list[Any],
    memory: list[int],
    message: str,
    generator: torch.Generator,
) -> None:
    kernel = linear(generator, 8, 8)
    with pytest.raises(ValueError, match=message):
        admit(module().Plan(1), inputs, outputs, [(kernel, *step) for step in steps], [[1, 8]] * 3, memory)


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (([1, 8], [8], 1, 0, 0), "as many strides as sizes"),
        (([0, 8], [8, 1], 1, 0, 0), "a slot is empty"),
        (([1, 8], [8, 1], 1, 4, 0), "reaches beyond"),
        (([1, 8], [8, 1], 0, 1, 0), "reaches beyond"),
    ],
)
def test_slots_that_make_no_sense(slot: Any, message: str, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        module().Plan(1).admit([([1, 8], [8, 1], 0, 0, 0), slot], [0], [1], [(linear(generator, 8, 8), [0], [1])])


def test_parts_of_one_memory_and_constants(generator: torch.Generator) -> None:
    """Two results side by side in one memory, each computed where it is; one reads what is the same in every call."""
    one, two, last = linear(generator, 8, 4), linear(generator, 8, 4), linear(generator, 8, 5)
    constant, x = random(generator, (1, 8)), random(generator, (1, 8))
    slots = [
        ([1, 8], [8, 1], 0, 0, 0),
        ([1, 8], [8, 1], 1, 0, constant.data_ptr()),
        ([1, 8], [8, 1], 2, 0, 0),
        ([1, 4], [8, 1], 2, 0, 0),
        ([1, 4], [8, 1], 2, 4, 0),
        ([1, 5], [5, 1], 5, 0, 0),
    ]
    plan = module().Plan(1)
    plan.admit(slots, [0], [5], [(one, [0], [3]), (two, [1], [4]), (last, [2], [5])])
    parts = torch.empty(2, 1, 4)
    one.run([x], [parts[0]], 1)
    two.run([constant], [parts[1]], 1)
    expected = torch.empty(1, 5)
    last.run([torch.cat([*parts], 1)], [expected], 1)
    assert torch.equal(run(plan, [x], [[1, 5]])[0], expected)
    with pytest.raises(ValueError, match="a constant is written"):
        plan.admit(slots, [0], [5], [(one, [0], [1]), (last, [1], [5])])


def test_sizes_that_were_not_admitted(generator: torch.Generator) -> None:
    plan = module().Plan(1)
    with pytest.raises(ValueError, match="were not admitted"):
        run(plan, [torch.empty(2, 8)], [[2, 8]])


def test_a_step_costs_next_to_nothing(generator: torch.Generator) -> None:
    """60 small layers in a plan take at most 5 us more than their kernels do, which one chain of them runs."""
    weights, biases = layers(generator, [8] * 61)
    chain = Bound(Op.named("mlp"), weights, biases, ["relu"] * 60).kernel
    kernels = [Bound(Op.named("mlp"), [w], [b], ["relu"]).kernel for w, b in zip(weights, biases, strict=True)]
    plan = made([0], [60], [(k, [i], [i + 1]) for i, k in enumerate(kernels)], [[1, 8]] * 61)
    x, y = random(generator, (1, 8)), torch.empty(1, 8)

    def fastest(kernel: Any) -> int:
        times = []
        for _ in range(500):
            start = perf_counter_ns()
            kernel.run([x], [y], 1)
            times.append(perf_counter_ns() - start)
        return min(times)  # others only ever add to it

    above = min(fastest(plan) - fastest(chain) for _ in range(5))
    assert above < 5000, f"{above} ns"
