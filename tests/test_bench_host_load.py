"""How much of the processors others take: from files of known content, and beside a process that never rests."""

import os
import time
from pathlib import Path

import pytest

from fastgraph.bench.perf.tail import busy_process
from fastgraph.bench.process.host_load import processors


def write(proc: Path, idle: int, users: int, own: int) -> None:
    """Two processors that this process may use, one that it may not, and this process."""
    usable = sorted(os.sched_getaffinity(0))[:1]
    lines = [f"cpu{number} {users} 0 0 {idle} 0 0 0 0 0 0" for number in usable] + ["cpu9999 500 0 0 0 0 0 0 0 0 0"]
    (proc / "stat").write_text("\n".join(["cpu 1 2 3 4", *lines, "ctxt 5"]))
    (proc / "7").mkdir(exist_ok=True)
    (proc / "7" / "stat").write_text(f"7 (a ) name) S {' '.join(['0'] * 10)} {own} 0 0 0 0")


def test_others_have_what_is_neither_idle_nor_ours(tmp_path: Path) -> None:
    write(tmp_path, idle=100, users=50, own=20)
    before = processors([7, 8], tmp_path)  # 8 has ended
    write(tmp_path, idle=140, users=110, own=50)
    after = processors([7, 8], tmp_path)
    assert before is not None
    assert after is not None
    assert after.others_since(before) == pytest.approx((60 - 30) / 100)
    assert before.others_since(before) is None


def test_nothing_is_said_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert processors([7], tmp_path) is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_a_busy_process_is_seen() -> None:
    with busy_process():
        before = processors([os.getpid()])
        time.sleep(0.5)
        after = processors([os.getpid()])
    assert before is not None
    assert after is not None
    others = after.others_since(before)
    assert others is not None
    assert others > 0.7 / len(os.sched_getaffinity(0))
