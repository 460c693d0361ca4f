"""optimize(dtype=...): computing in another dtype than the parameters have."""

import copy

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.kernels import native
from fastgraph.models import DeepLearningModel
from fastgraph.verify import error
from tests.reference import random
from tests.test_rewrite_simplify import IMAGE, randomised


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_error_is_at_most_twice_eagers_in_that_dtype(dtype: torch.dtype, generator: torch.Generator) -> None:
    model = DeepLearningModel().eval()
    fast = fastgraph.optimize(model, (torch.zeros(1, 784),), dtype=dtype)
    x = random(generator, (50, 784))
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        eager = copy.deepcopy(model).to(dtype)(x.to(dtype))
        y = fast(x)
    assert y.dtype == torch.float32
    assert error(y, exact) <= 2 * error(eager, exact) + 8 * torch.finfo(dtype).eps * exact.abs().max() + 1e-7
    assert all(p.dtype == torch.float32 for p in fast.parameters())
    kernel = next(iter(fast.explain())).kernel
    if dtype is torch.bfloat16 and native.cpu_capability() != "aten":
        assert kernel == f"mlp ({native.cpu_capability()}, bfloat16 weights)"
    else:
        assert kernel == "ATen"


def test_folding_happens_before_the_cast() -> None:
    """A batch-norm with a large scale: folded in bfloat16 its weights would lose what folding in fp32 keeps."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3), randomised(nn.BatchNorm2d(5)), nn.ReLU()).eval()
    fast = fastgraph.optimize(model, (IMAGE,), dtype=torch.bfloat16)
    graph = fast.rewritten.graph
    conv = next(n for n in graph.nodes if str(n.target) == "aten.conv2d.default")
    assert conv.args[1].target == torch.ops.aten.to.dtype
    assert conv.args[1].args[0].meta["val"].dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(fast(IMAGE), model(IMAGE), rtol=0.05, atol=0.05)


def test_weights_stay_fresh_and_gradients_reach_the_parameters(generator: torch.Generator) -> None:
    fast = fastgraph.optimize(DeepLearningModel().eval(), (torch.zeros(1, 784),), dtype=torch.bfloat16)
    x = random(generator, (5, 784))
    with torch.no_grad():
        before = fast(x)
    fast(x)[:, 3].sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fast.parameters())
    with torch.no_grad():
        fast.layer3.bias.add_(torch.arange(10.0))
        assert not torch.equal(fast(x), before)


def test_same_dtype_changes_nothing() -> None:
    model = DeepLearningModel().eval()
    fast = fastgraph.optimize(model, (torch.zeros(1, 784),), dtype=torch.float32)
    assert [str(n.target) for n in fast.rewritten.graph.nodes if n.op == "call_function"] == ["fastgraph.mlp.default"]
