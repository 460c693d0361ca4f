"""A random program from a seed. It grows by steps that are run as they are added, at two batches at once: the sizes
that differ between the two are those that follow the batch."""

import warnings
from random import Random
from typing import Any

import torch
from torch import nn

from tests.fuzz import catalogue, names
from tests.fuzz.compare import Calls, Session, exact_session
from tests.fuzz.program import Program, is_floating

_BATCHES = (7, 11)  # no size of a feature
_LARGEST = 4000  # elements of a tensor at the first batch
_INPUTS = ["B, 8", "B, 8", "B, 4, 6", "B, 6, 4", "B, 3, 8, 8", "B, 3, 8, 8", "B, 4, 6, 5", "B, 1, 16", "B, 10"]
_KINDS = {"layer": 9, "called": 4, "pointwise": 4, "shape": 5, "reduction": 1.5, "integer": 0.6, "mask": 0.5,
          "binary": 2, "mixed": 2, "write": 3, "state": 1.5, "branch": 2.5}  # fmt: skip


class _NotPossible(Exception):
    """No tensor at hand fits a template."""


def generate(seed: int) -> Program:
    """The program of this seed."""
    random = Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            program = _settle(_Growing(seed, random).grow(), random)
            if program is not None:
                return program


class _Growing:
    """A program under construction and its values at both batches."""

    def __init__(self, seed: int, random: Random) -> None:
        self.random, self.program = random, Program(seed, _inputs(random))
        self.scopes: list[dict[str, Any]] = []
        for batch in _BATCHES:
            scope = {name: getattr(names, name) for name in names.__all__}
            scope["self"] = nn.Module().eval()
            scope.update(zip(self.program.inputs, self.program.make_inputs(batch), strict=True))
            self.scopes.append(scope)
        self.order = [n for n in self.program.inputs if isinstance(self.scopes[0][n], torch.Tensor)]
        self.made = 0

    def grow(self) -> Program:
        """Adds 2 to 8 steps and the result."""
        for _ in range(self.random.randint(2, 8)):
            for _ in range(20):
                if self._step():
                    break
        self.program.result = self._result()
        self.program.eps = max(torch.finfo(v.dtype).eps for v in self.scopes[0].values() if is_floating(v))
        if any(low in self.program.source for low in ("bfloat16", "float16", ".half()")):
            self.program.eps = torch.finfo(torch.bfloat16).eps
        return self.program

    def _step(self) -> bool:
        kind = self.random.choices(list(_KINDS), list(_KINDS.values()))[0]
        try:
            init, lines = getattr(self, f"_{kind}")()
            return self._try(init, lines)
        except (_NotPossible, IndexError):
            return False

    def _try(self, init: list[str], lines: list[str]) -> bool:
        """Runs a step at both batches; it stays if it works and its values are tame."""
        before = [dict(scope) for scope in self.scopes]
        code = compile("\n".join([*init, *lines]), "<step>", "exec")
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.made)
                for scope in self.scopes:
                    exec(code, scope)
            tame = all(self._is_tame(scope) for scope in self.scopes)
        except Exception:
            tame = False
        if not tame:
            for scope, old in zip(self.scopes, before, strict=True):
                scope.clear()
                scope.update(old)
            return False
        new = [
            n for n, v in self.scopes[0].items() if n not in before[0] and isinstance(v, torch.Tensor) and "_" not in n
        ]
        self.order += new
        self.program.init += [line for line in init if line]
        self.program.steps.append(lines)
        self.made += 1
        return True

    def _is_tame(self, scope: dict[str, Any]) -> bool:
        tensors = [v for v in scope.values() if isinstance(v, torch.Tensor)]
        if any(t.numel() > _LARGEST * 2 or 0 in t.shape or t.is_complex() for t in tensors):
            return False
        return all(t.isfinite().all() and t.abs().max() < 1e4 for t in tensors if is_floating(t))

    # What a template may name

    def _value(self, name: str) -> torch.Tensor:
        value = self.scopes[0][name]
        assert isinstance(value, torch.Tensor)
        return value

    def _sizes(self, name: str) -> list[int | None]:
        first, second = (scope[name].shape for scope in self.scopes)
        return [a if a == b else None for a, b in zip(first, second, strict=True)]

    def _floating(self) -> list[str]:
        return [n for n in self.order if is_floating(self._value(n))]

    def _pick(self, candidates: list[str]) -> str:
        """Late ones more often, so that most steps count for the result."""
        if not candidates:
            raise _NotPossible
        return candidates[-1] if self.random.random() < 0.75 else self.random.choice(candidates)

    def _fill(self, template: str, x: str, **extra: Any) -> str:
        axes = self._value(x).dim()
        axis, other = (self.random.randrange(axes or 1) for _ in range(2))
        values = {"x": x, "d": axis, "e": other, "n": self._name(), **extra}
        alike = [n for n in self._floating() if n != x and self._value(n).shape == self._value(x).shape]
        integers = [n for n in self.order if not is_floating(self._value(n)) and self._value(n).dtype != torch.bool]
        masks = [n for n in self.order if self._value(n).dtype == torch.bool]
        others = [n for n in self._floating() if n != x]
        for key, candidates in (("y", alike), ("z", others), ("i", integers), ("m", masks)):
            if f"{{{key}}}" in template:
                values[key] = self._pick(candidates)
        return template.format_map(values)

    def _name(self) -> str:
        return f"t{self.made}"

    # Kinds of step

    def _layer(self) -> tuple[list[str], list[str]]:
        return self._with_layer([(*layer, "{n} = self.{k}({x})") for layer in catalogue.LAYERS])

    def _called(self) -> tuple[list[str], list[str]]:
        return self._with_layer(catalogue.CALLED_LAYERS)

    def _with_layer(self, layers: list[tuple[str, tuple[int, ...], int, str]]) -> tuple[list[str], list[str]]:
        x = self._pick(self._floating())
        fitting = [row for row in layers if self._value(x).dim() in row[1] and self._sizes(x)[row[2]] is not None]
        if not fitting:
            raise _NotPossible
        constructor, _, axis, call = self.random.choice(fitting)
        extra = dict(c=self._sizes(x)[axis], o=self.random.choice((2, 3, 4, 6, 8, 16)), k=f"m{self.made}")
        layer = constructor.format_map(extra)
        if "nn.Lazy" in layer:
            layer = layer.replace("nn.LazyLinear(", f"nn.Linear({self._lazy(layer, x)}, ")
        return [f"self.m{self.made} = {layer}"], [self._fill(call, x, **extra)]

    def _lazy(self, layer: str, x: str) -> int:
        prefix = layer.split(", nn.Lazy")[0] + ")"
        try:
            return eval(prefix, self.scopes[0])(self._value(x)).shape[1]
        except RuntimeError as error:
            raise _NotPossible from error

    def _template(self, templates: list[str], needs: int = 0) -> tuple[list[str], list[str]]:
        x = self._pick([n for n in self._floating() if self._value(n).dim() >= needs])
        return [], [f"{self._name()} = " + self._fill(self.random.choice(templates), x)]

    def _pointwise(self) -> tuple[list[str], list[str]]:
        return self._template(catalogue.POINTWISE)

    def _shape(self) -> tuple[list[str], list[str]]:
        return self._template(catalogue.SHAPES, 1)

    def _reduction(self) -> tuple[list[str], list[str]]:
        return self._template(catalogue.REDUCTIONS, 1)

    def _integer(self) -> tuple[list[str], list[str]]:
        return self._template(catalogue.INTEGERS, 1)

    def _mask(self) -> tuple[list[str], list[str]]:
        return self._template(catalogue.MASKS, 1)

    def _binary(self) -> tuple[list[str], list[str]]:
        return self._template(catalogue.BINARY)

    def _mixed(self) -> tuple[list[str], list[str]]:
        return self._template(catalogue.MIXED)

    def _write(self) -> tuple[list[str], list[str]]:
        into_input = self.random.random() < 0.25
        x = self._pick([n for n in self._floating() if (n in self.program.inputs) is into_input])
        return [], [self._fill(self.random.choice(catalogue.WRITES), x)]

    def _state(self) -> tuple[list[str], list[str]]:
        x = self._pick([n for n in self._floating() if self._value(n).dim() >= 2 and self._sizes(n)[-1] is not None])
        init, lines = self.random.choice(catalogue.STATE)
        extra = dict(c=self._sizes(x)[-1], k=f"m{self.made}", r=f"{x}.reshape(-1, {x}.shape[-1]).mean(0)")
        return [self._fill(line, x, **extra) for line in init], [self._fill(line, x, **extra) for line in lines]

    def _branch(self) -> tuple[list[str], list[str]]:
        x = self._pick([n for n in self._floating() if self._value(n).dim() >= 1])
        axis = self.random.randrange(self._value(x).dim())
        return [], [self._fill(line, x, d=axis) for line in self.random.choice(catalogue.BRANCHES)]

    def _result(self) -> str:
        """What forward returns; an expression that fails gives way to the last tensor."""
        tensors = list(dict.fromkeys(["b", *self._floating()]))[1:]
        fields = {"a": tensors[-1], "b": self.random.choice(self.order), "v": next(iter(self.program.inputs))}
        model = self.scopes[0]["self"]
        own = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
        own = [n for n in own if f"self.{n.split('.')[0]} =" in "\n".join(self.program.init)]
        fields["p"] = "self." + self.random.choice(own) if own else tensors[-1]
        template = self.random.choice(catalogue.RESULTS)
        if not is_floating(self._value(fields["b"])) and ("argmax" in template or "detach" in template):
            fields["b"] = fields["a"]
        expression = template.format_map(fields)
        try:
            eval(expression, self.scopes[0])
        except Exception:
            return fields["a"]
        return expression


def _inputs(random: Random) -> dict[str, str]:
    """One to three inputs: floating ones, sometimes indices, a mask, one without a batch."""
    shape = random.choice(_INPUTS)
    inputs = {"x": f"torch.randn({shape})"}
    if random.random() < 0.3:
        inputs["y"] = f"torch.randn({shape if random.random() < 0.6 else random.choice(_INPUTS)})"
    if random.random() < 0.2:
        inputs["i"] = "torch.randint(0, 6, (B, 5))"
    if random.random() < 0.12:
        inputs["mask"] = f"torch.rand({shape}) > 0.5"
    if random.random() < 0.08:
        inputs["w"] = "torch.randn(8)" if random.random() < 0.5 else "torch.randn(8, 8)"
    if random.random() < 0.05:
        inputs["flag"] = random.choice(("True", "2.0", "3"))
    return inputs


def _settle(program: Program, random: Random) -> Program | None:
    """Finds what eager takes: dtype, batches, leaves; None where it takes nothing or float64 cannot be had."""
    dtype = random.choices((torch.float32, torch.float64, torch.float16, torch.bfloat16), (90, 4, 3, 3))[0]
    training = random.random() < 0.1 and "Norm" not in program.source and "ropout" not in program.source
    training = training and "Transformer" not in program.source and "Multihead" not in program.source
    program = program.with_(dtype=dtype, training=training, leaf=random.random() < 0.5)
    program.eps = max(program.eps, torch.finfo(dtype).eps) if dtype != torch.float64 or program.eps > 1e-5 else 2.0**-52
    raising = {batch: _raises(program, batch) for batch in (1, 2, 3, 4)}
    taken = [batch for batch, error in raising.items() if not error]
    examples = [batch for batch in (1, 2, 4) if batch in taken]
    if not examples or (len(taken) < 4 and random.random() < 0.4):
        return None
    program.example = random.choice(examples)
    program.batches = tuple(batch for batch in (1, 2, 3) if batch in taken)
    program.failing = tuple(batch for batch in (1, 2, 3) if batch not in taken)
    if not program.batches:
        return None
    if program.leaf and _raises_on_leaves(program):
        program.leaf = False
    return program


def _raises(program: Program, batch: int) -> bool:
    """Does eager raise, or the float64 reference?"""
    calls: Calls = ((batch, False),)
    sessions = (Session(program, program.build()), exact_session(program))
    return any(outcome.error is not None for s in sessions for outcome in s.run(calls))


def _raises_on_leaves(program: Program) -> bool:
    return Session(program, program.build()).call(program.batches[0], True).error is not None
