"""Compiles the Triton kernels for GPUs that need not be there, and reports what they would ask of them.

    python -m fastgraph.kernels.triton_aot [--json FILE] [--architecture sm_90 ...] [--precision bf16 ...]

Every kernel is compiled exactly as it would be launched on tensors of the reference workload's sizes: the arguments are
recorded from the launch itself. A row is short, and the command fails, where a default configuration does not fit the
architecture's shared memory, spills registers, has no matrix instruction though its products are 16-bit or tf32, or
loads contiguous operands element by element.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastgraph.kernels.conv_pool import cuda as conv_pool
from fastgraph.kernels.conv_pool.op import Geometry
from fastgraph.kernels.conv_pool_mlp import cuda as conv_pool_mlp
from fastgraph.kernels.cuda.architecture import ARCHITECTURES, COMPILED, Architecture
from fastgraph.kernels.cuda.target import Target, fp32_precisions
from fastgraph.kernels.mlp import cuda as mlp

KINDS = {  # name: (dtype, precision of fp32 products)
    "ieee": (torch.float32, "ieee"),
    "tf32x3": (torch.float32, "tf32x3"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
CHAIN = (784, 512, 256, 10)
ACTIVATIONS = ["relu", "relu", "softmax"]
GEOMETRY = Geometry([1, 1], [0, 0], [1, 1], [3, 3], [2, 2], [0, 0], False)


WIDE_LOADS = r"ld\.global\S*\.v4\.b32|cp\.async\.c[ag]\S* [^;]*, 0x10|cp\.async\.bulk\.tensor"


@dataclass
class Launch:
    """One recorded launch: a kernel and its arguments by name, launch options included."""

    kernel: Any
    arguments: dict[str, Any]


class Recorder:
    """Stands for Triton's launcher: `recorder(kernel)[grid](...)` keeps the launch and runs nothing."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __call__(self, kernel: Any) -> Any:
        recorder = self

        class Launcher:
            def __getitem__(self, grid: tuple[Any, ...]) -> Callable[..., None]:
                return lambda **arguments: recorder.launches.append(Launch(kernel, arguments))

        return Launcher()


@dataclass
class Row:
    """What one compiled kernel asks for."""

    case: str
    kernel: str
    kind: str
    architecture: str
    tile: str  # the kernel's block sizes
    warps: int
    stages: int
    registers: int = 0  # a thread
    spilled: int = 0  # bytes a thread
    shared: int = 0  # bytes a block
    shared_limit: int = 0
    matrix: dict[str, int] = field(default_factory=dict)  # instructions found in the machine code
    wide_loads: int = 0  # instructions that load 16 bytes a thread at once, or whole tiles
    blocks: int = 0  # that fit one multiprocessor
    seconds: float = 0.0  # to compile
    short: list[str] = field(default_factory=list)  # rules that it breaks


def cases(kind: str, target: Target) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, what launches it) for every kernel on meta tensors of the reference workload's sizes."""
    dtype = KINDS[kind][0]

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def layers(sizes: tuple[int, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [tensor(o, i) for i, o in pairwise(sizes)], [tensor(o) for o in sizes[1:]]

    weights, biases = layers(CHAIN)
    for rows in (1, 128, 8192):
        x = tensor(rows, CHAIN[0])
        yield f"linear {rows}", partial(mlp.linear, x, weights[0], biases[0], "relu", target)
    yield "linear softmax", lambda: mlp.linear(tensor(128, CHAIN[2]), weights[2], biases[2], "softmax", target)
    if target.architecture.has_descriptors:
        # Rows of an odd stride, for which there is no descriptor: the pointer kernel's large tile.
        strided = tensor(8192, CHAIN[0] + 1)[:, :-1]
        yield "linear strided", lambda: mlp.linear(strided, weights[0], biases[0], "relu", target)
    if mlp.whole_refusal(weights, kind) is None:
        yield "mlp", lambda: mlp.whole(tensor(65536, CHAIN[0]), weights, biases, ACTIVATIONS, target)
    image, weight, bias = tensor(4, 3, 720, 480), tensor(16, 3, 3, 3), tensor(16)
    yield "conv_pool", lambda: conv_pool.run(image, weight, bias, *GEOMETRY, target=target)
    rest = (*layers((238, 120, 1)), ["relu", "relu+sigmoid"])
    if conv_pool_mlp.whole_refusal(image, weight, GEOMETRY, rest[0], kind) is None:
        yield "conv_pool_mlp", lambda: conv_pool_mlp.whole(image, weight, bias, *GEOMETRY, *rest, target=target)


def launches(kind: str, architecture: Architecture) -> Iterator[tuple[str, Launch]]:
    """Every case's launch on an architecture."""
    recorder = Recorder()
    target = Target(architecture, KINDS[kind][1], architecture.processors, recorder)
    for name, launch in cases(kind, target):
        launch()
        yield name, recorder.launches.pop()


def source_of(launch: Launch) -> ASTSource:
    """The launch as Triton's own launcher would specialise it: sizes of 1, and multiples of 16, are known."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_launch(launch: Launch, architecture: Architecture) -> tuple[Any, str]:
    """The compiled kernel, and what the assembler said about it."""
    amd, number = architecture.is_amd, architecture.number
    gpu = GPUTarget("hip", architecture.name, 64) if amd else GPUTarget("cuda", number, 32)
    options = {name: launch.arguments[name] for name in ("num_warps", "num_stages")}
    log = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.compilation.always_compile = True  # a kernel from the cache would not be assembled again
        triton.knobs.nvidia.dump_ptxas_log = True
        return triton.compile(source_of(launch), target=gpu, options=options), log.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what other programs write to standard error: the disassembler warns of every file's format."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def number(pattern: str, text: str) -> int:
    """The number that a pattern finds; ValueError where it is not there."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output has no {pattern!r}")
    return int(found.group(1))


def measure(case: str, launch: Launch, kind: str, architecture: Architecture) -> Row:
    """Compiles a launch and reads registers, memory and instructions from the result."""
    blocks = {k.removeprefix("BLOCK_"): v for k, v in launch.arguments.items() if k.startswith("BLOCK_")}
    tile = " ".join(f"{name}{size}" for name, size in blocks.items())
    warps, stages = launch.arguments["num_warps"], launch.arguments["num_stages"]
    row = Row(case, launch.kernel.__name__, kind, architecture.name, tile, warps, stages)
    start = time.perf_counter()
    compiled, log = compile_launch(launch, architecture)
    row.seconds = round(time.perf_counter() - start, 2)
    row.shared, row.shared_limit = compiled.metadata.shared, architecture.shared_a_block
    if architecture.is_amd:
        text = compiled.asm["amdgcn"]
        row.registers = number(r"\.vgpr_count:\s+(\d+)", text)
        row.spilled = 4 * number(r"\.vgpr_spill_count:\s+(\d+)", text)
        row.wide_loads = len(re.findall(r"(?:global|buffer)_load_dwordx4", text))
    else:
        with quiet():
            text, ptx = compiled.asm["sass"], compiled.asm["ptx"]
        row.registers = number(r"Used (\d+) registers", log)
        row.spilled = number(r"(\d+) bytes spill stores", log) + number(r"(\d+) bytes spill loads", log)
        row.wide_loads = len(re.findall(WIDE_LOADS, ptx))
    counts = {name: len(re.findall(rf"\b{name}", text)) for name in architecture.matrix}
    row.matrix = {name: count for name, count in counts.items() if count}
    row.blocks = resident_blocks(row, architecture)
    row.short = shortcomings(row, architecture)
    return row


def resident_blocks(row: Row, architecture: Architecture) -> int:
    """How many blocks one multiprocessor holds at once, by warps, registers and shared memory."""
    lanes = 64 if architecture.is_amd else 32
    registers = -(-max(row.registers, 1) * lanes // 256) * 256 * row.warps  # allocated in units of 256 a warp
    reserved = 0 if architecture.is_amd else 1024  # bytes of shared memory that the system takes a block
    return min(
        architecture.blocks,
        architecture.warps // row.warps,
        architecture.registers // registers,
        architecture.shared // (row.shared + reserved) if row.shared + reserved else architecture.blocks,
    )


def shortcomings(row: Row, architecture: Architecture) -> list[str]:
    """The rules that a row breaks."""
    found = []
    if row.shared > row.shared_limit:
        found.append(f"needs {row.shared} bytes of shared memory, {row.shared_limit} are to be had")
    if row.spilled:
        found.append(f"spills {row.spilled} bytes")
    if row.kind != "ieee" and not row.matrix:
        found.append(f"has none of {', '.join(architecture.matrix)}")
    if (
        row.case.startswith(("linear", "mlp")) and row.case != "linear strided" and row.wide_loads < 2
    ):  # of both operands
        found.append("loads contiguous operands element by element")
    if row.blocks < 1:
        found.append("no block fits a multiprocessor")
    return found


def rows(architectures: list[str], kinds: list[str]) -> Iterator[Row]:
    """Compiles everything, one row at a time."""
    for name in architectures:
        architecture = ARCHITECTURES[name]
        for kind in kinds:
            dtype, precision = KINDS[kind]
            multiplies = dtype is not torch.float32 or precision in fp32_precisions(architecture)
            if not multiplies or not architecture.takes(dtype):
                continue
            for case, launch in launches(kind, architecture):
                yield measure(case, launch, kind, architecture)


COLUMNS = ("case", "kind", "architecture", "tile", "warps", "stages", "registers", "spilled", "shared", "shared_limit")


def main(arguments: list[str] | None = None) -> int:
    """The command: prints the table, writes the JSON; 1 where a row is short."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m fastgraph.kernels.triton_aot", description=about)
    parser.add_argument("--json", type=Path, default=Path("out/triton_aot.json"), help="default: %(default)s")
    parser.add_argument("--architecture", nargs="+", choices=COMPILED, default=list(COMPILED))
    parser.add_argument("--precision", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args(arguments)
    found = []
    console = Console(width=180)
    for row in rows(options.architecture, options.precision):
        found.append(row)
        print(f"\r{len(found)} compiled, {row.case} {row.kind} {row.architecture}\033[K", end="", file=sys.stderr)
    print(file=sys.stderr)
    console.print(table(found))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    short = [row for row in found if row.short]
    print(f"{len(found)} kernels compiled, {len(short)} short; {options.json}")
    return 1 if short else 0


def table(found: list[Row]) -> Table:
    """The rows as people read them."""
    made = Table(*(name.replace("_", " ") for name in COLUMNS), "matrix", "blocks", "short")
    for row in found:
        values = [str(getattr(row, name)) for name in COLUMNS]
        matrix = " ".join(f"{name}:{count}" for name, count in row.matrix.items())
        made.add_row(*values, matrix or "-", str(row.blocks), "; ".join(row.short))
    return made


if __name__ == "__main__":
    sys.exit(main())
