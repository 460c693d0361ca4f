"""The bench's rooms: who may import whom, no circle among modules, and a line in front of each room."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_layering import ROOT, imported

BENCH = ROOT / "bench"
ROOMS = {  # which others each may import; the files at the top are nobody's room
    "backends": set(),
    "process": {"backends"},
    "ceilings": {"backends", "process"},
    "report": {"backends", "ceilings"},
    "zoo": set(),
    "perf": {"backends", "ceilings", "process", "zoo"},
}
DRIVERS = {"cli", "arguments", "runs", "session"}  # what rooms do not know; perf is a command of its own and does


def modules() -> dict[str, Path]:
    """All files by the names of their modules."""
    names = {path: ".".join(path.relative_to(BENCH).with_suffix("").parts) for path in BENCH.rglob("*.py")}
    return {name.removesuffix("__init__").strip("."): path for path, name in names.items()}


def imports_of(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The bench's modules that a file imports, inside functions and by name too."""
    for name in imported(path):
        parts = name.removeprefix("fastgraph.bench.").split(".") if name.startswith("fastgraph.bench.") else []
        while parts and ".".join(parts) not in known:
            parts.pop()
        if parts:
            yield ".".join(parts)


def graph() -> dict[str, set[str]]:
    """The other modules that each module imports."""
    known = modules()
    return {name: set(imports_of(path, known)) - {name} for name, path in known.items()}


def room(module: str) -> str | None:
    """The room that a module is in; None for a file at the top."""
    first = module.partition(".")[0]
    return first if first in ROOMS else None


def test_every_folder_is_a_room_that_says_what_it_holds() -> None:
    assert {path.parent.name for path in BENCH.glob("*/*.py")} == ROOMS.keys()
    for name in ROOMS:
        said = ast.get_docstring(ast.parse((BENCH / name / "__init__.py").read_text()))
        assert said is not None
        assert "\n" not in said


def test_modules_import_each_other_in_no_circle() -> None:
    found = graph()
    assert len(found) > 40
    assert found["report.page"] >= {"report.report", "report.html_tables", "report.plots"}  # the last in a function
    TopologicalSorter(found).prepare()


def test_a_circle_would_be_seen() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter(graph() | {"text": {"report.page"}}).prepare()


@pytest.mark.parametrize("name", list(ROOMS))
def test_rooms_import_what_they_may(name: str) -> None:
    inside = {module: found for module, found in graph().items() if room(module) == name}
    assert len(inside) > 3
    others = {room(module) for found in inside.values() for module in found} - {None, name}
    assert others == ROOMS[name]  # an arrow that is no more goes from the table, too
    if name != "perf":
        assert not DRIVERS & {module for found in inside.values() for module in found}


def test_the_rooms_themselves_are_in_no_circle() -> None:
    TopologicalSorter(ROOMS).prepare()
