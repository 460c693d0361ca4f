"""OptimizedModule holds the model's own parameters: never stale, trained like the model's."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.models import DeepLearningModel, Net
from tests.reference import random, scaled


def step(fast: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1, momentum=0.9)
    (fast(x) - torch.ones(len(x), 10)).square().sum().backward()
    optimizer.step()


def load_state(fast: nn.Module, x: torch.Tensor) -> None:
    fast.load_state_dict({name: t * 1.5 for name, t in fast.state_dict().items()})


def assign_state(fast: nn.Module, x: torch.Tensor) -> None:
    fast.load_state_dict({name: t * 1.5 for name, t in fast.state_dict().items()}, assign=True)


def replace_parameter(fast: nn.Module, x: torch.Tensor) -> None:
    fast.layer2.weight = nn.Parameter(fast.layer2.weight.detach() * 2)


def half_and_back(fast: nn.Module, x: torch.Tensor) -> None:
    fast.half().float()


def in_place(fast: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        fast.layer1.bias.add_(1)


@pytest.mark.parametrize("change", [step, load_state, assign_state, replace_parameter, half_and_back, in_place])
def test_weights_are_never_stale(change, deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (5, 784))
    with torch.no_grad():
        before = fast(x)
    change(fast, x)
    with torch.no_grad():
        eager = torch.func.functional_call(DeepLearningModel(), dict(fast.state_dict()), (x,))
        torch.testing.assert_close(fast(x), eager, rtol=1e-5, atol=1e-6)
        assert not torch.equal(fast(x), before)


def test_training_either_is_seen_by_both(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (5, 784))
    assert [p.data_ptr() for p in fast.parameters()] == [p.data_ptr() for p in deep.parameters()]
    assert list(fast.state_dict()) == list(deep.state_dict())
    with torch.no_grad():
        fast(x)
    step(deep, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), deep(x), rtol=1e-5, atol=1e-6)


def test_gradients_equal_eager_after_a_training_step_on_net(generator: torch.Generator) -> None:
    torch.manual_seed(3)
    net = scaled(Net(), 1.5)
    eager, fast = copy.deepcopy(net), fastgraph.optimize(net, (torch.zeros(1, 3, 720, 480),))
    x, labels = random(generator, (1, 3, 720, 480)), torch.rand(5728, 1, generator=generator)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.001, momentum=0.9) for m in (eager, fast)]
    for model, optimizer in zip((eager, fast), optimizers, strict=True):
        (model(x) - labels).sum().backward()
        optimizer.step()
    for ours, theirs in zip(fast.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * theirs.grad.abs().max().item())
        assert theirs.grad.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(fast(x), eager(x), rtol=1e-4, atol=1e-5)


def test_gradients_of_the_input(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    inputs = [random(generator, (3, 784)).requires_grad_() for _ in range(2)]
    inputs[1].data = inputs[0].data
    for p in deep.parameters():
        p.requires_grad_(False)
    for model, x in zip((fast, deep), inputs, strict=True):
        model(x)[:, 3].sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_copies_have_their_own_weights_and_pickling_points_to_save(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (3, 784))
    with torch.no_grad():
        before = fast(x)
        copied = copy.deepcopy(fast)
        copied.layer1.weight.mul_(2)
        assert not torch.equal(copied(x), before)
        assert torch.equal(fast(x), before)
    with pytest.raises(TypeError, match="fastgraph.save"):
        pickle.dumps(fast)


def test_train_mode() -> None:
    plain = fastgraph.optimize(nn.Linear(3, 2), (torch.ones(1, 3),))
    assert plain.train().training
    norm = fastgraph.optimize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), (torch.ones(1, 3, 2, 2),))
    assert not norm.training
    with pytest.raises(RuntimeError, match="train: batch_norm is captured in eval mode"):
        norm.train()
    assert not norm.eval().training
