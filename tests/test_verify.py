"""optimize(verify=True) must refuse a wrong result."""

from typing import Any

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.direct import Direct
from fastgraph.models import DeepLearningModel
from fastgraph.verify import error, tolerance


def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """One weight of the chain packed wrong: optimize raises, and says how far the result is off."""
    original = Direct.run

    def wrong(self: Any, state: Any, *inputs: Any) -> tuple[Any, ...]:
        return tuple(y + 1e-4 for y in original(self, state, *inputs))

    x = torch.rand(3, 784, generator=generator)
    monkeypatch.setattr(Direct, "run", wrong)
    with pytest.raises(RuntimeError, match=r"verify: output 0: error 0.0001 against float64, allowed .*e-0"):
        fastgraph.optimize(DeepLearningModel().eval(), (x,))
    assert fastgraph.optimize(DeepLearningModel().eval(), (x,), verify=False) is not None


def test_integer_outputs_have_to_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Argmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = DeepLearningModel()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).argmax(1)

    fast = fastgraph.optimize(Argmax().eval(), (torch.ones(3, 784),))
    assert fast(torch.ones(3, 784)).dtype == torch.int64
    monkeypatch.setattr(Direct, "run", lambda self, state, *inputs: (torch.full((3,), 11),))
    with pytest.raises(RuntimeError, match="verify: output 0 differs from eager's"):
        fastgraph.optimize(Argmax().eval(), (torch.ones(3, 784),))


def test_tolerance_is_twice_eagers_error_plus_ulps() -> None:
    reference = torch.tensor([1.0, -8.0, float("inf")], dtype=torch.float64)
    eager = torch.tensor([1.5, -8.0, float("inf")])
    assert error(eager, reference) == 0.5
    assert tolerance(eager, reference) == pytest.approx(1.0 + 8 * torch.finfo(torch.float32).eps * 8)
    assert error(torch.empty(0), torch.empty(0)) == 0


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def test_random_models_are_run_with_one_seed() -> None:
    fast = fastgraph.optimize(Noise(), (torch.zeros(3),))
    assert "verified on the example inputs" in str(fast.explain())
    torch.manual_seed(3)
    drawn = fast(torch.zeros(3))
    torch.manual_seed(3)
    assert torch.equal(drawn, Noise()(torch.zeros(3)))
