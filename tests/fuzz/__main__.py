"""python -m tests.fuzz: see the package's docstring."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from tests.fuzz import runner
from tests.fuzz.generator import generate
from tests.fuzz.shrink import shrink
from tests.fuzz.stages import STAGES, check


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Random modules against eager.")
    parser.add_argument("--seed", type=int, help="one module, all stages")
    parser.add_argument("--shrink", action="store_true", help="with --seed: look for a smaller module with the finding")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--stages", default=",".join(STAGES), help="some of " + ", ".join(STAGES))
    parser.add_argument("--every", action="store_true", help="the costly stages on every seed, not on a share")
    parser.add_argument("--budget", type=float, help="seconds after which no module is begun")
    parser.add_argument(
        "--log", type=Path, default=Path(tempfile.gettempdir()) / "fuzz.jsonl", help="JSON lines, one a finding"
    )
    options = parser.parse_args(arguments)
    options.stages = tuple(options.stages.split(","))
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"--stages: needs some of {', '.join(STAGES)}, got {', '.join(sorted(unknown))}")
    return _one(options) if options.seed is not None else _many(options)


def _one(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    program = generate(options.seed)
    print(program.source)
    report = check(program, options.stages)
    for finding in report.findings:
        print(f"{finding.stage}: {finding.kind}{' (minor)' if finding.minor else ''}: {finding.detail}")
        if options.shrink:
            print(shrink(program, finding).source)
    for stage, reason in report.refused.items():
        print(f"{stage}: refused: {reason}")
    if report.foreign:
        print(f"compile: torch's own backend differs in the same way: {', '.join(report.foreign)}")
    grave = [finding for finding in report.findings if not finding.minor]
    print(f"{len(grave)} findings")
    return 1 if grave else 0


def _many(options: argparse.Namespace) -> int:
    summary = runner.run(
        range(options.start, options.start + options.count),
        stages=options.stages,
        jobs=options.jobs,
        sparse=not options.every,
        budget=options.budget,
        log=options.log,
        say=lambda line: print(line, flush=True),
    )
    shown = {(f.stage, f.kind): f for f in reversed(summary.grave)}
    for finding in shown.values():
        print(f"\n{finding.stage}: {finding.kind}: {finding.detail[:400]}\n{finding.source}")
    print(summary)
    print(f"findings in {options.log}; one again: python -m tests.fuzz --seed SEED")
    return 1 if summary.grave else 0


if __name__ == "__main__":
    sys.exit(main())
