"""A generated module as source text, and what is made of it: the module, its inputs."""

import linecache
import re
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tests.fuzz import names

_MODULE = "tests.fuzz.generated"


@dataclass
class Program:
    """One random module. `inputs` are expressions of `B`, the batch; a step is lines of `forward` that stand together.

    `example` is the batch of the example inputs; `batches` are those that eager takes, `failing` those where it raises.
    `leaf`: with gradients, inputs are leaves (False: results of an operator, which may be written in place).
    """

    seed: int
    inputs: dict[str, str]
    init: list[str] = field(default_factory=list)
    steps: list[list[str]] = field(default_factory=list)
    result: str = "x"
    dtype: torch.dtype = torch.float32
    training: bool = False
    example: int = 2
    batches: tuple[int, ...] = (1, 2, 3)
    failing: tuple[int, ...] = ()
    leaf: bool = True
    eps: float = 2.0**-23  # of the coarsest floating dtype within

    @property
    def source(self) -> str:
        """The module's class, after comments that say how it is called."""
        about = [
            f"seed {self.seed}: example batch {self.example}, {str(self.dtype)[6:]}, "
            f"{'train' if self.training else 'eval'} mode, {'leaf' if self.leaf else 'computed'} inputs",
            *(f"{name} = {expression}" for name, expression in self.inputs.items()),
        ]
        init = ["super().__init__()", *self.init]
        forward = [line for step in self.steps for line in step] + [f"return {self.result}"]
        return "\n".join(
            [f"# {line}" for line in about]
            + ["class Model(nn.Module):", "    def __init__(self):"]
            + [f"        {line}" for line in init]
            + ["", f"    def forward(self, {', '.join(self.inputs)}):"]
            + [f"        {line}" for line in forward]
            + [""]
        )

    def build(self) -> nn.Module:
        """The module, with the same weights each time."""
        module, file = ModuleType(_MODULE), f"<fuzz {self.seed}>"
        vars(module).update({name: getattr(names, name) for name in names.__all__})
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        sys.modules[_MODULE] = module
        exec(compile(self.source, file, "exec"), vars(module))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = module.Model()
            _randomize(model)
        return model.to(self.dtype).train(self.training)

    def make_inputs(self, batch: int) -> tuple[Any, ...]:
        """The arguments of a call with this batch, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.seed + batch)
            values = [eval(e, {"torch": torch, "B": batch}) for e in self.inputs.values()]
        return tuple(v.to(self.dtype) if is_floating(v) else v for v in values)

    def without_unused_steps(self) -> "Program":
        """The program without what nothing reads."""
        steps: list[list[str]] = []
        read = self.result
        for step in reversed(self.steps):
            made = _makes(step)
            if made is None or re.search(rf"\b{made}\b", read):
                steps.insert(0, step)
                read += "\n" + "\n".join(step)
        return self.with_(steps=steps)

    def with_(self, **changes: Any) -> "Program":
        """A changed copy."""
        return replace(self, **changes)


def _makes(step: list[str]) -> str | None:
    """The name that a step gives a value to, where it does nothing else: one line, nothing written in place."""
    made = re.fullmatch(r"(t\d+) = (.*)", step[0]) if len(step) == 1 else None
    return made[1] if made and not re.search(r"\w_\(|self\.\w+\[", made[2]) else None


def is_floating(value: Any) -> bool:
    """A tensor of a floating dtype."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Values that make every layer count: statistics that are not 0 and 1, outputs that depend on the input."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.5)
            layer.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape))
        else:
            parameter.mul_(1.5)
