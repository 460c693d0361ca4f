"""The fast path into native code, and the guard before several operators: what passes, what goes the general way, and
that nothing leaks."""

import ctypes
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

from fastgraph.kernels import fast_path, native
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from fastgraph.kernels.structure import Structure
from fastgraph.kernels.weights import Snapshot
from tests.reference import in_threads, layers, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

GEOMETRY = ([1, 1], [0, 0], [1, 1], [2, 2], [2, 2], [0, 0], False)


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Bound:
    """One Linear layer."""
    return Bound(Op.named("mlp"), [weight], [bias], ["none"])


def opened(bound: Bound, tensors: dict[str, Any]) -> Any:
    """The fast path to an op's kernel, for as long as these tensors stay what they are."""
    slots = [(tensors, name) for name in tensors]
    return fast_path.fast_path(bound.kernel, slots, Snapshot(list(tensors.values())))


@pytest.fixture
def weights(generator: torch.Generator) -> dict[str, Any]:
    (weight,), (bias,) = layers(generator, (6, 5))
    return {"weight": torch.nn.Parameter(weight), "bias": bias}


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return random(generator, (2, 6))


def guarded(bound: Bound, tensors: dict[str, Any]) -> tuple[Any, Any]:
    """A guard before an op, and both together: the op's result, or None as of a fast path."""
    slots = [(tensors, name) for name in tensors]
    guard = fast_path.guard(slots, Snapshot(list(tensors.values())))
    return guard, lambda *inputs: bound(*inputs) if guard(*inputs) else None


@pytest.fixture(params=["fast path", "guard"])
def mlp(request: pytest.FixtureRequest, weights: dict[str, Any], x: torch.Tensor) -> Any:
    """The way to one Linear layer, which has admitted inputs of x's form: its fast path, or behind a guard."""
    bound = linear(weights["weight"], weights["bias"])
    if request.param == "fast path":
        found = opened(bound, weights)
        found.admit([x], [bound.output_size(x)])
    else:
        guard, found = guarded(bound, weights)
        guard.admit(x)
    with torch.no_grad():
        assert found(x) is not None
    return found


def test_this_torch_has_what_the_fast_path_needs() -> None:
    assert fast_path.IS_SUPPORTED


def test_each_ops_kernel_on_the_fast_path(generator: torch.Generator) -> None:
    chain = (*layers(generator, (7, 9, 4)), ["relu", "softmax"])
    convolution = (random(generator, (3, 2, 3, 3)), random(generator, (3,)), *GEOMETRY)
    cases: list[tuple[str, tuple[Any, ...], tuple[int, ...]]] = [
        ("mlp", chain, (7,)),
        ("conv_pool", convolution, (2, 9, 16)),
        ("conv_pool_mlp", (*convolution, *chain), (2, 9, 16)),
    ]
    for name, arguments, shape in cases:
        op = Op.named(name)
        bound = Bound(op, *arguments)
        found = opened(bound, {})
        for batch in (1, 2, 5):
            image = random(generator, (batch, *shape))
            assert found(image) is None
            found.admit([image], [bound.output_size(image)])
            expected = op.target(image, *arguments)
            assert torch.equal(found(image), expected)
            assert expected.std() > 0.01


# ---- inputs


class Subclass(torch.Tensor):
    pass


OTHER_FORMS: list[Callable[[torch.Tensor], Any]] = [
    lambda x: x.double(),
    lambda x: x.to(torch.int32),
    lambda x: x[:1],
    lambda x: x[0],
    lambda x: x.view(2, 6, 1),
    lambda x: x.view(1, 1, 1, 2, 6),
    lambda x: x[:0],
    lambda x: x.to_sparse(),
    lambda x: x.to("meta"),
    lambda x: x.as_subclass(Subclass),
    lambda x: torch.nn.Parameter(x),
    lambda x: x.tolist(),
    lambda x: None,
]
OTHER_MEMORY: list[Callable[[torch.Tensor], Any]] = [
    lambda x: torch.cat([x, x], 1)[:, ::2],
    lambda x: x.t().contiguous().t(),
    lambda x: x[:1].expand(2, 6),
    lambda x: torch._neg_view(x),
    lambda x: torch._efficientzerotensor((2, 6)),
]


@pytest.mark.parametrize("other", OTHER_FORMS)
def test_what_does_not_pass(other: Callable[[torch.Tensor], Any], mlp: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert mlp(other(x)) is None
        assert mlp(x) is not None


@pytest.mark.parametrize("other", OTHER_MEMORY)
def test_only_the_kernel_needs_values_in_order(
    other: Callable[[torch.Tensor], Any], weights: dict[str, Any], x: torch.Tensor
) -> None:
    bound = linear(weights["weight"], weights["bias"])
    found, (guard, through) = opened(bound, weights), guarded(bound, weights)
    found.admit([x], [bound.output_size(x)])
    guard.admit(x)
    with torch.no_grad():
        assert found(other(x)) is None
        torch.testing.assert_close(through(other(x)), other(x).clone() @ weights["weight"].t() + weights["bias"])


def test_a_guard_for_several_inputs(weights: dict[str, Any], x: torch.Tensor) -> None:
    guard = fast_path.guard([(weights, "weight")], Snapshot([weights["weight"]]))
    other = x.double()
    with torch.no_grad():
        assert not guard(x, other)
        guard.admit(x, other)
        assert guard(x, other)
        assert not guard(other, x)
        assert not guard(x)
        assert not guard(x, other, x)
        assert not guard()
    weights["weight"].requires_grad_(False)
    assert guard(x, other)
    assert not guard(x, other.clone().requires_grad_())


def test_a_guard_that_minds_strides(weights: dict[str, Any]) -> None:
    slots, snapshot = [(weights, "bias")], Snapshot([weights["bias"]])
    guard, strict = fast_path.guard(slots, snapshot), fast_path.guard(slots, snapshot, strides=True)
    x = torch.zeros(2, 3, 4, 5)
    others = [x.to(memory_format=torch.channels_last), torch.zeros(4, 3, 4, 5)[::2], x[:1].expand(2, 3, 4, 5)]
    for either in (guard, strict):
        either.admit(x)
        assert either(x.clone())
    for other in others:
        assert guard(other)
        assert not strict(other)
    strict.admit(others[0])
    assert strict(others[0])
    assert strict(x)
    assert not strict(others[1])
    assert not strict(x, x)


def test_one_argument_passes(mlp: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert mlp() is None
        assert mlp(x, x) is None
        assert mlp(x) is not None


def test_forms_beyond_the_limit_go_the_general_way(weights: dict[str, Any]) -> None:
    bound = linear(weights["weight"], weights["bias"])
    found = opened(bound, weights)
    base = torch.zeros(4200, 6)
    for batch in range(1, 4200):
        found.admit([base[:batch]], [(batch, 5)])
    with torch.no_grad():
        assert found(base[:4096]).shape == (4096, 5)
        assert found(base[:4097]) is None
    guard, _ = guarded(bound, weights)
    for batch in range(1, 4200):
        guard.admit(base[:batch])
    with torch.no_grad():
        assert guard(base[:4096])
        assert not guard(base[:4097])


# ---- the weights


def in_place(weights: dict[str, Any]) -> None:
    weights["weight"].data.copy_(weights["weight"].data)  # an alias: not seen
    with torch.no_grad():
        weights["weight"].add_(1)


def other_memory(weights: dict[str, Any]) -> None:
    weights["weight"].data = weights["weight"].data.clone()


def another(weights: dict[str, Any]) -> None:
    weights["bias"] = weights["bias"].detach()


def none(weights: dict[str, Any]) -> None:
    weights["bias"] = None


def removed(weights: dict[str, Any]) -> None:
    del weights["bias"]


@pytest.mark.parametrize("change", [in_place, other_memory, another, none, removed])
@pytest.mark.parametrize("grad", [True, False])
def test_the_fast_path_closes_with_a_change(
    change, grad: bool, mlp: Any, weights: dict[str, Any], x: torch.Tensor
) -> None:
    weights["weight"].requires_grad_(False)
    with torch.set_grad_enabled(grad):
        assert mlp(x) is not None
        change(weights)
        assert mlp(x) is None


def test_there_is_no_fast_path_for_weights_without_a_version(weights: dict[str, Any]) -> None:
    bound = linear(weights["weight"], weights["bias"])
    with torch.inference_mode():
        assert opened(bound, {"weight": torch.ones(5, 6)}) is None
        assert guarded(bound, {"weight": torch.ones(5, 6)})[0] is None
        assert linear(torch.ones(5, 6)).kernel is None
    assert opened(bound, {"weight": torch.ones(5, 6)}) is not None


def test_both_close_with_a_change_of_the_modules(x: torch.Tensor) -> None:
    module = torch.nn.Linear(6, 5).requires_grad_(False)
    bound = linear(module.weight, module.bias)
    slots = [(module._parameters, "weight"), (module._parameters, "bias")]
    snapshot, structure = Snapshot([module.weight, module.bias]), Structure([module])
    found = fast_path.fast_path(bound.kernel, slots, snapshot, structure)
    guard = fast_path.guard(slots, snapshot, structure)
    found.admit([x], [bound.output_size(x)])
    guard.admit(x)
    for change in (module.register_forward_hook, module.register_forward_pre_hook):
        assert found(x) is not None
        assert guard(x)
        handle = change(lambda *_: None)
        assert found(x) is None
        assert not guard(x)
        handle.remove()
    module.scale = 1.0
    assert found(x) is None
    assert not guard(x)


def test_the_form_is_looked_at_first(x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers try several fast paths one after the other."""
    asked: list[int] = []
    monkeypatch.setattr(fast_path, "OBSERVERS", [(lambda: asked.append(1), None)])
    weight = torch.ones(5, 6)
    bound = linear(weight)
    found, (guard, _) = opened(bound, {"weight": weight}), guarded(bound, {"weight": weight})
    found.admit([x], [bound.output_size(x)])
    guard.admit(x)
    assert found(x[:1]) is None
    assert not guard(x[:1])
    assert not asked
    assert found(x) is not None
    assert guard(x)
    assert len(asked) == 2


# ---- who observes, who wants gradients


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def in_order(*contexts: AbstractContextManager[Any]) -> ExitStack:
    """All of them, the last one innermost."""
    stack = ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


OBSERVES: list[Callable[[], AbstractContextManager[Any]]] = [
    Functions,
    Operators,
    lambda: torch.autocast("cpu"),
    forward_ad.dual_level,
    lambda: in_order(torch.device("cpu"), Functions()),
    lambda: in_order(Functions(), torch.device("cpu")),
    lambda: in_order(torch.device("cpu"), Operators()),
    lambda: in_order(torch.device("cpu"), forward_ad.dual_level()),
    lambda: in_order(torch.device("cpu"), torch.autocast("cpu")),
]
DOES_NOT_OBSERVE: list[Callable[[], AbstractContextManager[Any]]] = [
    nullcontext,
    lambda: torch.device("cpu"),
    lambda: torch.device("meta"),
    lambda: in_order(torch.device("cpu"), torch.device("meta")),
    lambda: in_order(torch.inference_mode(), torch.device("cpu")),
    lambda: torch.autocast("cpu", enabled=False),
]


@pytest.mark.parametrize("observe", OBSERVES)
def test_who_observes_is_sent_the_general_way(
    observe: Callable[[], AbstractContextManager[Any]], mlp: Any, x: torch.Tensor
) -> None:
    with torch.no_grad():
        with observe():
            assert mlp(x) is None
            assert not fast_path.is_unobserved()
        assert mlp(x) is not None
        assert fast_path.is_unobserved()


@pytest.mark.parametrize("other", DOES_NOT_OBSERVE)
def test_a_default_device_passes(
    other: Callable[[], AbstractContextManager[Any]], mlp: Any, x: torch.Tensor, weights: dict[str, Any]
) -> None:
    with torch.no_grad():
        expected = mlp(x)
        with other():
            assert torch.equal(mlp(x), expected)
            assert fast_path.is_unobserved()
            before = torch._C._len_torch_function_stack()
        in_place(weights)
        with other():
            assert mlp(x) is None
            assert torch._C._len_torch_function_stack() == before
            assert not torch._C._is_torch_function_all_disabled()


def test_a_look_under_a_default_device_takes_none_of_its_python_code(
    weights: dict[str, Any], x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = linear(weights["weight"], weights["bias"])
    found = opened(bound, weights)
    found.admit([x], [bound.output_size(x)])
    asked: list[Any] = []
    monkeypatch.setattr(DeviceContext, "__torch_function__", lambda self, *arguments: asked.append(arguments))
    with torch.no_grad():
        with torch.device("cpu"):
            result = found(x)
        assert not asked
        assert torch.equal(result, found(x))


# what torch itself does when the first dual tensor is made
jit_is_deprecated = pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning"
)


@jit_is_deprecated
def test_inputs_with_tangents_do_not_pass(mlp: Any, weights: dict[str, Any], x: torch.Tensor) -> None:
    weights["weight"].requires_grad_(False)
    assert mlp(x) is not None
    with forward_ad.dual_level():
        assert mlp(forward_ad.make_dual(x, x)) is None
        with forward_ad._set_fwd_grad_enabled(False):
            assert mlp(x) is None
    assert mlp(x) is not None


@jit_is_deprecated
def test_transforms_and_tracing_are_sent_the_general_way(mlp: Any, x: torch.Tensor) -> None:
    passed: list[bool] = []

    def observed(value: torch.Tensor) -> torch.Tensor:
        passed.append(mlp(x) is not None)
        passed.append(mlp(value) is not None)
        return value * 2

    with torch.no_grad():
        torch.vmap(observed)(x)
        torch.func.grad(lambda value: observed(value).sum())(x)
        torch.func.jvp(observed, (x,), (x,))
        torch._C._create_graph_by_tracing(observed, (x,), lambda value: "", False, False)
    assert passed == [False] * 8


def test_gradients_are_not_lost(mlp: Any, weights: dict[str, Any], x: torch.Tensor) -> None:
    assert mlp(x) is None
    weights["weight"].requires_grad_(False)
    assert not mlp(x).requires_grad
    assert mlp(x.clone().requires_grad_()) is None
    weights["weight"].requires_grad_(True)
    assert mlp(x) is None


# ---- the result


def test_the_result_is_an_ordinary_tensor_of_the_inputs_dtype(mlp: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        plain = mlp(x)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(mlp(x), plain)
            assert mlp(x).dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)
    assert type(plain) is torch.Tensor
    assert plain.untyped_storage().resizable()
    assert not plain.is_inference()
    with torch.inference_mode():
        assert mlp(x).is_inference()


def test_the_number_of_threads_is_asked_in_each_call(
    weights: dict[str, Any], x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked.append(1) or len(asked))
    bound = linear(weights["weight"], weights["bias"])
    found = opened(bound, weights)
    found.admit([x], [bound.output_size(x)])
    with torch.no_grad():
        found(x)
        found(x)
    assert len(asked) == 2


def test_eight_threads(mlp: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected = mlp(x)
    wrong: list[int] = []

    def work(thread: int) -> None:
        with torch.no_grad():
            wrong.extend(thread for _ in range(300) if not torch.equal(mlp(x), expected))

    in_threads(8, work)
    assert wrong == []


def test_other_python_threads_run_while_the_kernel_does(generator: torch.Generator) -> None:
    bound = Bound(Op.named("mlp"), *layers(generator, (512, 512)), ["none"])
    found, rows = opened(bound, {}), torch.zeros(20000, 512)
    found.admit([rows], [bound.output_size(rows)])
    call: list[float] = []  # when it began and ended

    def work() -> None:
        with torch.no_grad():
            call.append(time.perf_counter())
            found(rows)
            call.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    turns = []
    while thread.is_alive():
        turns.append(time.perf_counter())
        time.sleep(0.001)
    begin, end = call
    margin = (end - begin) / 5
    assert any(begin + margin < turn < end - margin for turn in turns)


# ---- references


def test_references(mlp: Any, weights: dict[str, Any], x: torch.Tensor) -> None:
    held = [x, weights["weight"], weights["bias"], weights, None, torch.Tensor]
    held += [observes for observes, _ in fast_path.OBSERVERS]
    with torch.no_grad():
        before = [sys.getrefcount(value) for value in held]
        for _ in range(1000):
            mlp(x)
            mlp(x.double())
            mlp(x.to_sparse())
        after = [sys.getrefcount(value) for value in held]
        assert all(abs(b - a) < 100 for a, b in zip(after, before, strict=True))
        result = sys.getrefcount(mlp(x))  # outside the assert, which keeps what it compares
    assert result == 1


def test_a_cycle_through_the_fast_path_is_collected(weights: dict[str, Any]) -> None:
    class Marker:
        pass

    bound = linear(weights["weight"], weights["bias"])
    owner: dict[str, Any] = {**weights, "marker": Marker()}
    slots = [(owner, name) for name in weights]
    owner["path"] = fast_path.fast_path(bound.kernel, slots, Snapshot(list(weights.values())))
    owner["guard"] = fast_path.guard(slots, Snapshot(list(weights.values())))
    alive = weakref.ref(owner["marker"])
    del owner, slots
    gc.collect()
    assert alive() is None


def test_a_cycle_through_its_structure_is_collected() -> None:
    module = torch.nn.Linear(6, 5)
    bound = linear(module.weight, module.bias)
    slots, structure = [(module._parameters, "weight")], Structure([module])
    snapshot = Snapshot([module.weight])
    module.path = fast_path.fast_path(bound.kernel, slots, snapshot, structure)
    module.guard = fast_path.guard(slots, snapshot, structure)
    alive = weakref.ref(module)
    del module, bound, slots, structure, snapshot
    gc.collect()
    assert alive() is None


# ---- torch's table


class Table(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("previous", ctypes.c_void_p)]


def newer(previous: int | None) -> tuple[Any, Table]:
    """A capsule with a table of major version 2; keep the second value alive."""
    table = Table(2, 0, previous)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(ctypes.addressof(table), b"dlpack_exchange_api", None), table


def test_a_torch_without_the_table_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = native.kernels()
    assert module is not None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    present = pointer(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
    name = "__dlpack_c_exchange_api__"
    for previous, supported in ((None, False), (present, True)):
        capsule, _table = newer(previous)
        monkeypatch.setattr(torch.Tensor, name, capsule)
        assert module.FastPath.is_supported() == supported
    monkeypatch.delattr(torch.Tensor, name)
    assert not module.FastPath.is_supported()
    with pytest.raises(RuntimeError, match="needs torch.Tensor.__dlpack_c_exchange_api__ of version 1"):
        module.Guard([], [])


def test_a_fast_path_needs_a_kernel() -> None:
    module = native.kernels()
    assert module is not None
    with pytest.raises(TypeError):
        module.FastPath([], [], None)
    with pytest.raises(ValueError, match="needs a Kernel"):
        module.FastPath([], [], torch.ones(1))
