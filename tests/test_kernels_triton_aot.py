"""A part of the compilation matrix of `python -m fastgraph.kernels.triton_aot`, and its rules."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from fastgraph.kernels.cuda import architecture
from fastgraph.kernels.cuda.architecture import ARCHITECTURES, COMPILED
from fastgraph.kernels.triton_aot import KINDS, Row, launches, main, measure, resident_blocks, shortcomings

# Every kernel on sm_90 in bf16, every architecture, every precision; not every combination.
SUBSET = [
    ("sm_90", "bf16", "linear 1"),
    ("sm_90", "bf16", "linear 8192"),
    ("sm_90", "bf16", "mlp"),
    ("sm_90", "bf16", "conv_pool"),
    ("sm_90", "bf16", "conv_pool_mlp"),
    ("sm_75", "ieee", "mlp"),
    ("sm_80", "tf32", "linear 128"),
    ("sm_80", "ieee", "conv_pool_mlp"),
    ("sm_86", "tf32x3", "linear 128"),
    ("sm_89", "fp16", "linear 128"),
    ("sm_100", "bf16", "linear 8192"),
    ("sm_120", "tf32", "mlp"),
    ("gfx942", "bf16", "linear 128"),
]


@pytest.mark.parametrize(("name", "kind", "case"), SUBSET)
def test_a_default_configuration_is_not_short(name: str, kind: str, case: str) -> None:
    gpu = ARCHITECTURES[name]
    launch = dict(launches(kind, gpu))[case]
    row = measure(case, launch, kind, gpu)
    assert row.short == []
    assert row.registers > 16
    assert 0 < row.shared <= row.shared_limit
    assert 1 <= row.blocks <= gpu.blocks
    expected = {"sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}.get(name, "HMMA")
    if (
        case in ("linear 128", "linear 8192", "mlp") and kind != "ieee"
    ):  # tiles that are large enough for the best there is
        assert row.matrix[expected] > 0
    if case == "linear 8192":
        assert launch.arguments["DESCRIPTORS"] == gpu.has_descriptors


def test_every_architecture_and_precision_has_its_launches() -> None:
    assert {name for name, _, _ in SUBSET} == set(COMPILED)
    assert {kind for _, kind, _ in SUBSET} == set(KINDS)
    for name in COMPILED:
        cases = [case for case, _ in launches("bf16", ARCHITECTURES[name])]
        assert {"linear 1", "linear 128", "linear 8192", "linear softmax", "mlp", "conv_pool", "conv_pool_mlp"} <= set(
            cases
        )


GOOD = Row("mlp", "mlp_kernel", "bf16", "sm_80", "", 8, 2, 128, 0, 40000, 166912, {"HMMA": 4}, 8, 2)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (dict(), None),
        (dict(spilled=4), "spills 4 bytes"),
        (dict(shared=200000), "needs 200000 bytes of shared memory, 166912 are to be had"),
        (dict(matrix={}), "has none of HMMA"),
        (dict(wide_loads=1), "loads contiguous operands element by element"),
        (dict(blocks=0), "no block fits a multiprocessor"),
    ],
    ids=str,
)
def test_rules(change: dict, rule: str | None) -> None:
    assert shortcomings(replace(GOOD, **change), ARCHITECTURES["sm_80"]) == ([] if rule is None else [rule])


def test_fp32_needs_no_matrix_instructions() -> None:
    assert shortcomings(replace(GOOD, kind="ieee", matrix={}), ARCHITECTURES["sm_80"]) == []


@pytest.mark.parametrize(
    ("change", "blocks"),
    [(dict(), 2), (dict(registers=255), 1), (dict(shared=80000), 2), (dict(shared=90000), 1), (dict(registers=32), 4)],
)
def test_blocks_of_a_multiprocessor(change: dict, blocks: int) -> None:
    """sm_80: 64 warps, 65,536 registers, 164 KiB."""
    assert resident_blocks(replace(GOOD, **change), ARCHITECTURES["sm_80"]) == blocks


def test_the_command_writes_its_table_and_fails_where_a_row_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fastgraph.kernels.triton_aot as aot

    file = tmp_path / "table.json"
    monkeypatch.setattr(aot, "rows", lambda architectures, kinds: iter([GOOD, replace(GOOD, short=["spills 4 bytes"])]))
    assert main(["--json", str(file)]) == 1
    assert "2 kernels compiled, 1 short" in capsys.readouterr().out
    assert [row["short"] for row in json.loads(file.read_text())] == [[], ["spills 4 bytes"]]
    monkeypatch.setattr(aot, "rows", lambda architectures, kinds: iter([GOOD]))
    assert main(["--json", str(file)]) == 0


def test_an_architecture_without_a_table_row_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastgraph.kernels.triton_aot", "--architecture", "sm_1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "invalid choice: 'sm_1'" in done.stderr
    assert architecture.COMPILED[0] in done.stderr
