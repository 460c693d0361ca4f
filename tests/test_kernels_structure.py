"""What is seen of modules: every way in which users change them, in native code and without it."""

import gc
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fastgraph.kernels import native, structure

KINDS = [structure.StructureInPython, structure.Structure]


@pytest.fixture(params=KINDS, ids=["Python", "native"])
def kind(request: pytest.FixtureRequest) -> Any:
    """`Structure`, of both kinds."""
    if request.param is structure.Structure and native.library() is None:
        pytest.skip("no compiled kernels")
    return request.param


class Settings(nn.Module):
    """A module with all that users keep in one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.name, self.nothing = 2.0, "a name", None
        self.sizes = [1, 2]
        self.config = {"act": "relu", "depth": 2}
        self.order = OrderedDict(first=1, second=2, third=3)
        self.flags: set[str] = {"fast"}
        self.no_flags: set[str] = set()
        self.register_buffer("mask", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def new() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3), Settings()).eval()


def hook(*_: Any) -> None:
    pass


def other_order(model: Any) -> None:
    model._modules["0"], model._modules["2"] = model[2], model[0]


def other_name(model: Any) -> None:
    """The same values in the same order."""
    model[4].__dict__["factor"] = model[4].__dict__.pop("mine")


def other_dict(model: Any) -> None:
    model[1].__dict__ = dict(model[1].__dict__)


class OtherReLU(nn.ReLU):
    pass


CHANGES: dict[str, Callable[[Any], Any]] = {
    "parameter": lambda model: setattr(model[0], "weight", nn.Parameter(torch.ones(4, 3))),
    "no bias": lambda model: setattr(model[0], "bias", None),
    "load_state_dict": lambda model: model.load_state_dict(
        {key: value.clone() for key, value in model.state_dict().items()}, assign=True
    ),
    "prune": lambda model: prune.l1_unstructured(model[0], "weight", 0.5),
    "spectral_norm": lambda model: parametrizations.spectral_norm(model[2]),
    "weight_norm": lambda model: parametrizations.weight_norm(model[2]),
    "layer": lambda model: model.__setitem__(0, nn.Linear(3, 4)),
    "layer appended": lambda model: model.append(nn.ReLU()),
    "layer removed": lambda model: model.pop(1),
    "order of layers": other_order,
    "buffers of another dtype": lambda model: model.double(),
    "buffer": lambda model: setattr(model[4], "mask", torch.ones(2)),
    "buffer registered": lambda model: model[1].register_buffer("more", torch.ones(2)),
    "buffer removed": lambda model: delattr(model[4], "mask"),
    "number": lambda model: setattr(model[4], "scale", 3.0),
    "string": lambda model: setattr(model[4], "name", "another"),
    "None": lambda model: setattr(model[4], "nothing", False),
    "new attribute": lambda model: setattr(model[4], "more", 1),
    "attribute removed": lambda model: delattr(model[4], "scale"),
    "item of a list": lambda model: model[4].sizes.__setitem__(1, 3),
    "list appended": lambda model: model[4].sizes.append(3),
    "value of a dict": lambda model: model[4].config.update(act="gelu"),
    "key of a dict": lambda model: model[4].config.update(width=1),
    "key of a dict removed": lambda model: model[4].config.pop("act"),
    "order of an OrderedDict": lambda model: model[4].order.move_to_end("first"),
    "order of the last two": lambda model: model[4].order.move_to_end("second"),
    "set": lambda model: model[4].flags.add("exact"),
    "empty set": lambda model: model[4].no_flags.add("exact"),
    "set emptied": lambda model: model[4].flags.clear(),
    "another in the set": lambda model: (model[4].flags.clear(), model[4].flags.add("exact")),
    "method": lambda model: setattr(model[0], "forward", lambda x: x),
    "class": lambda model: setattr(model[1], "__class__", OtherReLU),
    "dictionary": other_dict,
    "forward hook": lambda model: model[2].register_forward_hook(hook),
    "forward hook of the model": lambda model: model.register_forward_hook(hook),
    "hook with kwargs": lambda model: model[2].register_forward_hook(hook, with_kwargs=True),
    "hook that is always called": lambda model: model[2].register_forward_hook(hook, always_call=True),
    "pre-hook with kwargs": lambda model: model[2].register_forward_pre_hook(hook, with_kwargs=True),
    "pre-hook": lambda model: model[2].register_forward_pre_hook(hook),
    "backward hook": lambda model: model[2].register_full_backward_hook(hook),
    "compiled": lambda model: setattr(model[2], "_compiled_call_impl", hook),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_seen(change: Callable[[Any], Any], kind: Any) -> None:
    model = new()
    seen = kind(list(model.modules()))
    assert seen.unchanged()
    assert seen.unchanged()
    change(model)
    assert not seen.unchanged()
    assert not seen.unchanged()
    assert kind(list(model.modules())).unchanged()


def test_a_key_is_seen_not_only_its_value(kind: Any) -> None:
    model = new()
    model[4].mine = 1.5  # the last
    seen = kind([model[4]])
    assert seen.unchanged()
    other_name(model)
    assert not seen.unchanged()


GLOBAL_HOOKS = [
    nn.modules.module.register_module_forward_hook,
    nn.modules.module.register_module_forward_pre_hook,
    nn.modules.module.register_module_full_backward_hook,
    nn.modules.module.register_module_full_backward_pre_hook,
]


@pytest.mark.parametrize("register", GLOBAL_HOOKS)
def test_a_hook_of_all_modules_is_seen_as_long_as_it_is_there(register: Callable[..., Any], kind: Any) -> None:
    seen = kind(list(new().modules()))
    handle = register(hook)
    try:
        assert not seen.unchanged()
    finally:
        handle.remove()
    assert seen.unchanged()


def test_what_is_put_back_is_unchanged(kind: Any) -> None:
    model = new()
    seen = kind(list(model.modules()))
    weight = model[0].weight
    model[0].weight = nn.Parameter(torch.ones(4, 3))
    assert not seen.unchanged()
    model[0].weight = weight
    assert seen.unchanged()
    handle = model[0].register_forward_hook(hook)
    handle.remove()
    assert seen.unchanged()


def test_calls_training_and_values_are_no_change(kind: Any) -> None:
    model = new()
    seen = kind(list(model.modules()))
    model(torch.ones(2, 3)).sum().backward()
    model.train()
    model(torch.ones(2, 3))
    with torch.no_grad():
        model[0].weight.mul_(2)
    model.requires_grad_(False).float()
    model.register_state_dict_post_hook(hook)
    model[4].register_load_state_dict_pre_hook(hook)
    assert seen.unchanged()


def test_ignored_attributes(kind: Any) -> None:
    model = new()
    seen = kind(list(model.modules()), ("scale", "sizes"))
    model[4].scale = 5.0
    model[4].sizes.append(4)
    model[4].sizes = []
    assert seen.unchanged()
    model.train()
    assert not seen.unchanged()
    model.eval()
    assert seen.unchanged()
    model[4].name = "another"
    assert not seen.unchanged()


def test_modules_that_were_not_given_are_not_seen(kind: Any) -> None:
    model = new()
    seen = kind([model, model[0]])
    model[4].scale = 3.0
    assert seen.unchanged()
    model[0].scale = 3.0
    assert not seen.unchanged()


class Direct(nn.Module):
    """Its attributes are stored by Python's own instructions, which a loop specializes."""

    __setattr__ = object.__setattr__


def test_a_store_in_a_loop_is_seen(kind: Any) -> None:
    module = Direct()
    module.scale, values = 0.5, [1.5, 2.5]
    for i in range(200):
        seen = kind([module])
        assert seen.unchanged()
        module.scale = values[i % 2]
        assert not seen.unchanged()


def test_no_modules(kind: Any) -> None:
    assert kind([]).unchanged()


def test_a_module_needs_attributes(kind: Any) -> None:
    with pytest.raises(AttributeError):
        kind([3])


def test_what_was_seen_stays_alive(kind: Any) -> None:
    """Its address could otherwise be given to what replaces it."""
    model = new()
    weight, item = weakref.ref(model[0].weight), weakref.ref(model[4])
    seen = kind(list(model.modules()))
    for _ in range(100):
        model[0].weight = nn.Parameter(torch.ones(4, 3))
        assert not seen.unchanged()
    del model
    gc.collect()
    assert weight() is not None
    assert item() is not None
    del seen
    gc.collect()
    assert weight() is None
    assert item() is None


def test_a_cycle_is_collected(kind: Any) -> None:
    model = new()
    model[4].config["seen"] = kind(list(model.modules()))
    model.seen = kind(list(model.modules()))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_references_are_given_back(kind: Any) -> None:
    model = new()
    held = [model[0].weight, model[4].config, model[4].__dict__, Settings, model[4]]
    before = [sys.getrefcount(value) for value in held]
    seen = kind(list(model.modules()))
    within = [sys.getrefcount(value) for value in held]
    for _ in range(1000):
        seen.unchanged()
    assert [sys.getrefcount(value) for value in held] == within
    del seen
    gc.collect()
    assert [sys.getrefcount(value) for value in held] == before
