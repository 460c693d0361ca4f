"""A smaller program with the same finding."""

import re
import warnings
from collections.abc import Iterator

from tests.fuzz.compare import Session, exact_session
from tests.fuzz.program import Program
from tests.fuzz.stages import Finding, check


def shrink(program: Program, finding: Finding) -> Program:
    """Leaves out what can be left out, until nothing more can."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(program):
            if len(candidate.source) < len(program.source) and _has(candidate, finding):
                program, smaller = candidate, True
                break
    return program


def _candidates(program: Program) -> Iterator[Program]:
    """Unused lines and inputs left out; simpler results; a step left out, its result replaced by an earlier tensor."""
    yield from _without_unused(program)
    for result in dict.fromkeys([*re.findall(r"\bt\d+\b", program.result), *program.inputs]):
        yield program.with_(result=result)
    for i in range(len(program.steps) - 1, -1, -1):
        rest = [*program.steps[:i], *program.steps[i + 1 :]]
        yield program.with_(steps=rest)
        made = re.findall(r"^(t\d+)\b.* = ", "\n".join(line.strip() for line in program.steps[i]), re.MULTILINE)
        for other in dict.fromkeys(re.findall(r"\b(t\d+|[a-z]+)\b", "\n".join(program.steps[i]))):
            if made and other != made[0] and (re.fullmatch(r"t\d+", other) or other in program.inputs):
                yield _renamed(program.with_(steps=rest), made[0], other)


def _renamed(program: Program, old: str, new: str) -> Program:
    change = lambda text: re.sub(rf"\b{old}\b", new, text)  # noqa: E731
    steps = [[change(line) for line in step] for step in program.steps]
    return program.with_(steps=steps, result=change(program.result))


def _without_unused(program: Program) -> Iterator[Program]:
    body = "\n".join([line for step in program.steps for line in step] + [program.result])
    for line in program.init:
        name = re.match(r"self\.(\w+) =|self\.register_buffer\('(\w+)'", line)
        if name and not re.search(rf"self\.{name.group(1) or name.group(2)}\b", body):
            yield program.with_(init=[other for other in program.init if other != line])
    for name in program.inputs:
        if len(program.inputs) > 1 and not re.search(rf"\b{name}\b", body):
            yield program.with_(inputs={n: e for n, e in program.inputs.items() if n != name})


def _has(program: Program, finding: Finding) -> bool:
    """Is it a program that eager takes, with a finding of the kind?"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for session in (Session(program, program.build()), exact_session(program)):
                if any(o.error is not None for o in session.run(tuple((batch, False) for batch in program.batches))):
                    return False
        except Exception:
            return False
        return any(f.kind == finding.kind for f in check(program, (finding.stage,)).findings)
