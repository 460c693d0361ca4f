"""From ``--model zoo:NAME,..``, ``torchvision:NAME,..`` or ``timm:NAME,..`` to cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from torch import nn

from fastgraph.bench.cases import Built, Case
from fastgraph.bench.user_model import check_output
from fastgraph.bench.zoo.entry import Entry
from fastgraph.bench.zoo.libraries import timm_entry, torchvision_entry
from fastgraph.bench.zoo.table import ZOO
from fastgraph.bench.zoo.weights import informative
from fastgraph.export.user_model import UsageError
from fastgraph.extras import require

STATISTICS_OF = 4  # samples, for batch-norms
LIBRARIES: dict[str, Callable[..., Entry]] = {"torchvision": torchvision_entry, "timm": timm_entry}


def is_zoo(target: str) -> bool:
    """Whether ``--model`` asks for networks that are here."""
    return target == "zoo" or target.partition(":")[0] in ("zoo", *LIBRARIES)


def zoo_cases(
    target: str, batches: Callable[[Entry], Sequence[int]], input_shape: Sequence[int] | None = None
) -> list[Case]:
    """The cases of the networks that ``target`` names, all of the zoo for "zoo", each at ``batches`` of it.

    ``input_shape``, the batch first, is for a library's networks.

    Raises:
        UsageError: a network or its package is not there, or a shape where the zoo has its own.
    """
    library, colon, names = target.partition(":")
    if library == "zoo" and input_shape is not None:
        raise UsageError("--input-shape is for a model of your own or of a library; the zoo's have theirs")
    named = [name.strip() for name in names.split(",")] if colon or library != "zoo" else list(ZOO)
    if "" in named:
        raise UsageError(f"--model {library}:NAME needs a network's name; got {target!r}")
    sample = None if input_shape is None else tuple(input_shape[1:])
    chosen = []
    for name in dict.fromkeys(named):
        found = entry(library, name, sample)
        if library in LIBRARIES:
            _check(f"{library}:{name}", partial(build, library, name, sample, 1))
        chosen += [Case(found.title, batch, partial(build, library, name, sample)) for batch in batches(found)]
    return chosen


def _check(target: str, make: Callable[[], Built]) -> None:
    """UsageError unless the network can be made and called, and gives one tensor."""
    try:
        built = make()
    except Exception as error:  # of the library, while the network is made or looks at its images
        reason = str(error).strip().splitlines()[:1]
        raise UsageError(f"{target} cannot be made: {': '.join([type(error).__name__, *reason])}") from error
    check_output(target, built)


def entry(library: str, name: str, sample: tuple[int, ...] | None = None) -> Entry:
    """A network by its name; UsageError where it is not there."""
    if library in LIBRARIES:
        return LIBRARIES[library](name, sample=sample)
    if name not in ZOO:
        raise UsageError(f"--model zoo:NAME needs some of {', '.join(ZOO)}; got {name!r}")
    found = ZOO[name]
    if found.package is not None:
        require(found.package, by=f"--model zoo:{name}")
    return found


def build(library: str, name: str, sample: tuple[int, ...] | None, batch: int) -> Built:
    """The network with its random weights, and a batch for it."""
    return Built(_model(library, name, sample), entry(library, name, sample).example(batch))


@lru_cache(maxsize=1)  # VGG-16 has half a gigabyte, and every process keeps what it has made
def _model(library: str, name: str, sample: tuple[int, ...] | None) -> nn.Module:
    found = entry(library, name, sample)
    return informative(found.make, found.example(STATISTICS_OF))
