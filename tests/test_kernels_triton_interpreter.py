"""Runs tests/triton_interpreter, in a process that has Triton's interpreter on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("part", ["test_mlp.py", "test_conv_pool.py", "test_measure.py", "test_mutations.py"])
def test_the_kernels_under_the_interpreter(part: str) -> None:
    """Part by part, so that a failure's own report is short."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/triton_interpreter/{part}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"TRITON_INTERPRET=1 {' '.join(command[1:])}\n{done.stdout}{done.stderr}", pytrace=False)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed.group(1)) >= 2
    assert "skipped" not in done.stdout
