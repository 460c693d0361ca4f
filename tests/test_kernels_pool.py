"""The thread pool as a neighbour: other threads, other processes, set_num_threads, an idle machine."""

import os
import subprocess
import sys
import time

import pytest
import torch

from fastgraph.kernels import native
from tests.reference import in_threads, layers, random

mlp = torch.ops.fastgraph.mlp.default
pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")


WORKERS = """
def tasks():
    return [f"/proc/self/task/{task}/" for task in os.listdir("/proc/self/task")]
def workers():
    return [task for task in tasks() if open(task + "comm").read() == "fastgraph\\n"]
def workers_ns():
    return sum(int(open(task + "schedstat").read().split()[0]) for task in workers())
"""


def in_new_process(code: str) -> str:
    """Runs code in a Python of its own and returns what it prints."""
    header = "import os, time, torch, fastgraph.kernels\nmlp = torch.ops.fastgraph.mlp.default\n" + WORKERS
    setup = "w = [torch.randn(512, 784), torch.randn(300, 512)]\nx = torch.randn(200, 784)\n"
    setup += "args = (w, [None, None], ['relu', 'none'])\n"
    done = subprocess.run(
        [sys.executable, "-c", header + setup + code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_eight_python_threads_on_one_chain_and_on_several(generator: torch.Generator) -> None:
    torch.set_num_threads(2)
    chains = [layers(generator, [200 + i, 300, 40]) for i in range(4)]
    inputs = [random(generator, (60, 200 + i)) for i in range(4)]
    expected = [mlp(x, *chain, ["relu", "tanh"]) for x, chain in zip(inputs, chains, strict=True)]
    wrong: list[int] = []

    def work(thread: int) -> None:
        for i in range(60):
            k = 0 if thread < 4 else (thread + i) % 4
            if not torch.equal(mlp(inputs[k], *chains[k], ["relu", "tanh"]), expected[k]):
                wrong.append(thread)

    in_threads(8, work)
    assert wrong == []


def test_after_fork_in_child_and_parent() -> None:
    out = in_new_process("""
torch.set_num_threads(3)
expected = mlp(x, *args)
read, write = os.pipe()
child = os.fork()
if child == 0:
    mlp(x, *args)
    time.sleep(0.2)
    own = len(workers())
    same = all(torch.equal(mlp(x, *args), expected) for _ in range(20))
    os.write(write, f"{same} {own}".encode())
    os._exit(0)
_, status = os.waitpid(child, 0)
assert all(torch.equal(mlp(x, *args), expected) for _ in range(20))
print(status, os.read(read, 20).decode())
""")
    assert out == "0 True 2"  # the child has workers of its own


def test_threads_are_those_of_set_num_threads() -> None:
    out = in_new_process("""
def workers_after_a_call(threads):
    torch.set_num_threads(threads)
    mlp(x, *args)
    time.sleep(0.2)  # they name themselves once they run
    return len(workers())
print(*[workers_after_a_call(n) for n in (1, 2, 4, 1)])
""")
    assert out == "0 1 3 3"  # workers are kept, but only the first threads - 1 of them take part


def test_one_thread_computes_on_the_caller_alone() -> None:
    out = in_new_process("""
torch.set_num_threads(4)
mlp(x, *args)
torch.set_num_threads(1)
time.sleep(0.1)
own, all_threads = time.thread_time(), time.process_time()
for _ in range(300):
    mlp(x, *args)
own, all_threads = time.thread_time() - own, time.process_time() - all_threads
print(own > 0.02, all_threads / own)
""")
    worked, share = out.split()
    assert worked == "True"
    assert float(share) < 1.1


def test_idle_workers_use_no_processor_time() -> None:
    out = in_new_process("""
torch.set_num_threads(4)
for _ in range(50):
    mlp(x, *args)
time.sleep(0.05)
start = time.process_time()
time.sleep(2)
print(time.process_time() - start)
""")
    assert float(out) < 0.04  # two percent of two seconds


def test_behind_an_operator_of_atens_the_job_is_its_teams() -> None:
    """ATen's workers spin on, each on a core that ours would need: they compute, ours stay parked."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    out = in_new_process("""
torch.set_num_threads(2)
x, big = torch.randn(200, 784), torch.randn(400, 400, 16)
expected = mlp(x, *args)
alone = workers_ns()
for _ in range(20):
    mlp(x, *args)
alone, same = workers_ns() - alone, True
for i in range(40):
    if i == 20:
        behind, own, everybody = workers_ns(), time.thread_time(), time.process_time()
    big.add(1)
    same &= torch.equal(mlp(x, *args), expected)
own, everybody = time.thread_time() - own, time.process_time() - everybody
print(same, (workers_ns() - behind) / alone, everybody / own)
""")
    same, ours, threads = out.split()
    assert same == "True"
    assert float(ours) < 0.5
    assert float(threads) > 1.5


def test_atens_workers_keep_their_denormal_mode() -> None:
    out = in_new_process("""
torch.set_num_threads(2)
big, small = torch.randn(400, 400, 16), torch.full((400, 400, 16), 1e-40)
for _ in range(4):
    big.add(1)
    torch.set_flush_denormal(True)
    mlp(x, *args)
    torch.set_flush_denormal(False)
    print(bool(((small * 0.5) != 0).all()), end=" ")
""")
    assert out == "True True True True"


def test_short_jobs_with_pauses_are_the_callers_own() -> None:
    """Waking a worker takes longer than the whole job, which is known once some calls have been measured."""
    out = in_new_process("""
torch.set_num_threads(2)
x = torch.randn(1, 784)
mlp(x, *args)
time.sleep(0.01)
spent = []
for _ in range(20):  # on a busy machine the first measurements are too long, and are made again
    before = workers_ns()
    for i in range(20):
        time.sleep(0.001)
        mlp(x, *args)
    spent.append(workers_ns() - before)
print(min(spent), len(workers()))
""")
    assert out == "0 1"


def test_two_threads_share_the_work() -> None:
    """The workers do compute: with two threads both use processor time."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    out = in_new_process("""
torch.set_num_threads(2)
x = torch.randn(2000, 784)
mlp(x, *args)
own, all_threads = time.thread_time(), time.process_time()
for _ in range(40):
    mlp(x, *args)
own, all_threads = time.thread_time() - own, time.process_time() - all_threads
print(all_threads / own)
""")
    assert float(out) > 1.3


def test_a_busy_neighbour_does_not_stop_a_call(generator: torch.Generator) -> None:
    """Every core is taken by another process: calls still end, with the right bits, within a few time slices."""
    torch.set_num_threads(2)
    weights, biases = layers(generator, [784, 512, 256, 10])
    x = random(generator, (16, 784))
    expected = mlp(x, weights, biases, ["relu", "relu", "softmax"])
    spin = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count() or 1)]
    times: dict[int, list[float]] = {1: [], 2: []}
    try:
        time.sleep(0.2)
        for i in range(400):
            threads = i % 2 + 1
            torch.set_num_threads(threads)
            start = time.perf_counter()
            assert torch.equal(mlp(x, weights, biases, ["relu", "relu", "softmax"]), expected)
            times[threads].append(time.perf_counter() - start)
    finally:
        for other in others:
            other.kill()
            other.wait()
    alone, shared = (sorted(times[threads])[100] for threads in (1, 2))
    assert shared < 0.05
    assert shared < 10 * alone  # a time slice is 50 times as long


MEMORY = """
import gc
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
def grown(op, few, many):
    for _ in range(3):
        op(few)
    gc.collect()
    before = peak()
    y = op(many)
    return (peak() - before - 4 * y.numel()) / 2**20
torch.set_num_threads(2)
"""


def test_working_memory_does_not_grow_with_the_rows() -> None:
    """A hidden layer of all rows would take 256 MB, one of the rows that are computed at a time takes less than one."""
    out = in_new_process(
        MEMORY
        + """
w = [torch.randn(1024, 16), torch.randn(16, 1024)]
op = lambda x: mlp(x, w, [None, None], ["relu", "none"])
print(grown(op, torch.randn(1024, 16), torch.randn(65536, 16)))
"""
    )
    assert float(out) < 4


@pytest.mark.parametrize(("dtype", "most"), [("float32", 4), ("bfloat16", 12)])
def test_working_memory_does_not_grow_with_the_images(dtype: str, most: float) -> None:
    """The convolution of all images would take 470 MB, widening all in bf16 100 MB; some at a time take 4 MB."""
    out = in_new_process(
        MEMORY
        + f"""
w, sizes = torch.randn(16, 3, 3, 3), ([1, 1], [0, 0], [1, 1], [8, 8], [8, 8], [0, 0], False)
op = lambda x: torch.ops.fastgraph.conv_pool.default(x, w.to(x.dtype), None, *sizes)
print(grown(op, *(torch.randn(n, 3, 64, 64, dtype=torch.{dtype}) for n in (8, 2048))))
"""
    )
    assert float(out) < most
