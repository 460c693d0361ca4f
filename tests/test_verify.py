"""optimize(verify=True) must refuse a wrong result."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph import verify
from fastgraph.capture import capture
from fastgraph.evaluation import evaluate, random_nodes
from fastgraph.models import DeepLearningModel
from fastgraph.program import Program
from fastgraph.sums import Sums
from fastgraph.verify import error, run, tolerance


def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """One weight of the chain packed wrong: optimize raises, and says how far the result is off."""
    original = Program.run

    def wrong(self: Any, state: Any, *inputs: Any) -> tuple[Any, ...]:
        return tuple(y + 1e-4 for y in original(self, state, *inputs))

    x = torch.rand(3, 784, generator=generator)
    monkeypatch.setattr(Program, "run", wrong)
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
    monkeypatch.setattr(Program, "run", lambda self, state, *inputs: (torch.full((3,), 11),))
    with pytest.raises(RuntimeError, match="verify: output 0 differs from eager's"):
        fastgraph.optimize(Argmax().eval(), (torch.ones(3, 784),))


def test_tolerance_is_twice_eagers_error_plus_ulps() -> None:
    reference = torch.tensor([1.0, -8.0, float("inf")], dtype=torch.float64)
    eager = torch.tensor([1.5, -8.0, float("inf")])
    assert error(eager, reference) == 0.5
    assert tolerance(eager, reference) == pytest.approx(1.0 + 8 * torch.finfo(torch.float32).eps * 8)
    assert error(torch.empty(0), torch.empty(0)) == 0


def note(model: nn.Module, *inputs: Any, **options: Any) -> str:
    """What `optimize` says about its verification."""
    notes = fastgraph.optimize(model.eval(), inputs, **options).explain().notes
    return next(n for n in notes if "verified" in n)


class Function(nn.Module):
    """A function of the inputs, a linear layer and a buffer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(8, 8)
        self.register_buffer("buffer", torch.zeros(4, 8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.spectrum = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        return self.function(self, x) if y is None else self.function(self, x, y)


F = nn.functional


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda m, x: F.dropout(m.linear(x), 0.5, False), (torch.randn(3, 8),)),
        (lambda m, x: F.scaled_dot_product_attention(x, x, m.linear(x)), (torch.randn(2, 3, 8),)),
        (lambda m, x: m.linear(x.float() / 255), (torch.arange(24, dtype=torch.uint8).reshape(3, 8),)),
        (lambda m, x: m.linear(x.to(torch.bfloat16).to(torch.float32)), (torch.randn(3, 8),)),
        (lambda m, i: m.linear(F.one_hot(i, 8).float()), (torch.tensor([0, 5, 7]),)),
        (lambda m, x: m.linear(x) + torch.arange(8, dtype=torch.float32) + torch.ones(8), (torch.randn(3, 8),)),
        (lambda m, x: torch.fft.irfft(torch.fft.rfft(m.linear(x)) * m.spectrum), (torch.randn(3, 8),)),
        (lambda m, x: m.linear(x).sum(1).to(torch.float32).softmax(0, dtype=torch.float32), (torch.randn(3, 8),)),
        (lambda m, z: m.linear(z.real) + z.imag, (torch.randn(3, 8, dtype=torch.complex64),)),
        (lambda m, x: torch.cond(x.sum() > 0, m.linear, lambda x: x.float() * 2, (x,)), (torch.randn(3, 8),)),
        (lambda m, x: m.linear(x) + torch.rand_like(x) + torch.randn(8), (torch.randn(3, 8),)),
        (lambda m, x: F.dropout(m.linear(x), 0.5, True), (torch.randn(3, 8),)),
        (lambda m, x: m.linear(x) * torch.empty(8).uniform_(), (torch.randn(3, 8),)),
    ],
    ids=[
        "dropout", "attention", "uint8", "bfloat16", "one_hot", "factories", "fft", "softmax", "complex", "cond",
        "rand_like", "dropout on", "uniform",
    ],
)  # fmt: skip
def test_whatever_is_floating_inside_the_graph_is_verified(function: Any, inputs: Any) -> None:
    assert note(Function(function), *inputs).startswith("verified")


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")  # torch.export's
def test_recurrent_layers_are_verified() -> None:
    assert note(nn.LSTM(8, 4), torch.randn(5, 2, 8)).startswith("verified")
    assert note(nn.GRU(8, 4, 2, dropout=0.5), torch.randn(5, 2, 8)).startswith("verified")


def test_float64_is_float64_all_the_way() -> None:
    """What the graph casts to float32 and complex64 is as exact as the rest, imaginary parts too."""
    model = Function(lambda m, x: torch.fft.irfft(torch.fft.rfft(m.linear(x).float()) * m.spectrum.to(torch.complex64)))
    x = torch.randn(3, 8)
    captured = capture(model.eval(), (x,))
    results = run(captured, [x], torch.float64)
    assert results is not None
    exact = copy.deepcopy(model).double()
    exact.spectrum.data = model.spectrum.data.to(torch.complex128)
    with torch.no_grad():
        h = exact.linear(x.double())
        torch.testing.assert_close(results[0], torch.fft.irfft(torch.fft.rfft(h) * exact.spectrum), rtol=0, atol=1e-13)


def test_complex_numbers_are_complex128() -> None:
    captured = capture(Function(lambda m, z: torch.exp(z * m.spectrum) * z).eval(), (z := torch.randn(3, 5) * 1j,))
    (result,) = run(captured, [z], torch.float64) or [None]
    assert result is not None
    assert result.dtype == torch.complex128
    spectrum = captured.graph_module.spectrum.detach().to(torch.complex128)
    wide = z.to(torch.complex128)
    assert torch.equal(result, torch.exp(wide * spectrum) * wide)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.linear(x) + torch.rand_like(x) + torch.randn(8),
        lambda m, x: F.dropout(m.linear(x), 0.5, True) * torch.empty(8).uniform_(),
        lambda m, x: m.linear(x) * torch.bernoulli(x.abs().clamp(max=1)),
    ],
)
def test_random_numbers_are_the_same_in_float64(function: Any) -> None:
    """Else eager's own error, and with it the tolerance, would be as large as the numbers."""
    said = note(Function(function), torch.randn(3, 8))
    assert float(said.split("float64 ")[1]) < 1e-5


def test_which_operators_draw_random_numbers() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(x, 0.5, False) + F.dropout(x, 0.0, True) + F.rrelu(x)
        x = F.scaled_dot_product_attention(x, x, x) + F.alpha_dropout(x, 0.5, False)
        return F.dropout(x, 0.5, True) + torch.rand_like(x) + F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)

    graph = capture(Function(forward).eval(), (torch.randn(2, 3, 8),)).graph
    drawn = [str(n.target).split(".")[1] for n in random_nodes(graph)]
    assert drawn == ["dropout", "rand_like", "scaled_dot_product_attention"]


def test_reading_bits_is_a_true_reason() -> None:
    said = note(Function(lambda m, x: m.linear(x).view(torch.int32) >> 3), torch.randn(3, 8))
    assert said.startswith("not verified: view")
    assert "bits" in said


def graph_network(m: Any, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    return torch.relu(m.linear(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])))


def attention(m: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (x @ x.transpose(1, 2) + mask).softmax(-1) @ x


@pytest.mark.parametrize(
    ("function", "inputs", "rows"),
    [
        (graph_network, (torch.randn(6, 8), torch.randint(2, 6, (2, 10))), False),
        (attention, (torch.randn(4, 5, 8), torch.zeros(5, 5)), False),
        (lambda m, x, table: m.linear(x) + table[5], (torch.randn(6, 8), torch.randn(7, 8)), False),
        (lambda m, x: m.linear(x)[3], (torch.randn(6, 8),), False),
        (lambda m, x, i: m.linear(x)[i] + x, (torch.randn(6, 8), torch.tensor([0, 1, 0, 1, 0, 1])), False),
        (lambda m, x, y: m.linear(x) + y, (torch.randn(6, 8), torch.randn(6, 8)), True),
        (lambda m, x: m.linear(x), (torch.randn(6, 8),), True),
    ],
    ids=["graph", "mask", "table", "row", "indices", "two", "one"],
)  # fmt: skip
def test_only_a_batch_is_cut(function: Any, inputs: Any, rows: bool) -> None:
    said = note(Function(function), *inputs)
    assert said.startswith("verified")
    assert ("first 2 rows" in said) is rows


def test_a_cut_that_the_model_does_not_take_falls_back_to_all_rows() -> None:
    """Nothing in the sizes says that index 5 of the batch is needed."""
    index = torch.tensor([5, 0])
    said = note(Function(lambda m, x: m.linear(x) + x[index.to(x.device)].sum(0)), torch.randn(6, 8))
    assert said.startswith("verified on the example inputs:")


def writes_everywhere(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.buffer[..., :-4] = m.buffer[..., 4:].clone()
    m.buffer.view(-1)[1] += 1
    m.count += 1
    x[0] *= 2
    return m.linear(m.buffer + x)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_inputs_stay_untouched(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Function(writes_everywhere).eval(), torch.randn(4, 8)
    kept = {name: t.clone() for name, t in model.state_dict(keep_vars=True).items()}
    versions = {name: t._version for name, t in model.state_dict(keep_vars=True).items()}
    before, version = x.clone(), x._version
    if fails:
        original = Program.run

        def failing(self: Any, *arguments: Any) -> None:
            original(self, *arguments)
            raise ZeroDivisionError("on purpose")

        monkeypatch.setattr(Program, "run", failing)
        with pytest.raises(ZeroDivisionError):
            fastgraph.optimize(model, (x,))
    else:
        assert note(model, x).startswith("verified")
    assert torch.equal(x, before)
    assert x._version == version
    assert {name: t._version for name, t in model.state_dict(keep_vars=True).items()} == versions
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("target", ["buffer", "input"])
def test_a_wrong_write_is_refused(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs are right; what is left in the buffer, or in the input, is not."""
    model = Function(writes_everywhere).eval()
    original = Program.run

    def wrong(self: Any, state: Any, x: torch.Tensor) -> Any:
        results = tuple(r.clone() for r in original(self, state, x))
        (model.buffer if target == "buffer" else x)[0, 2] += 1
        return results

    monkeypatch.setattr(Program, "run", wrong)
    monkeypatch.setattr(Program, "run_with_gradients", wrong)
    with pytest.raises(RuntimeError, match=f"verify: {target} .*afterwards: error 1 against float64"):
        fastgraph.optimize(model, (torch.randn(4, 8),))


def test_results_that_are_one_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Program.run

    def wrong(self: Any, state: Any, x: torch.Tensor) -> Any:
        first, _ = original(self, state, x)
        return first, first

    monkeypatch.setattr(Program, "run", wrong)
    with pytest.raises(RuntimeError, match="verify: outputs share memory"):
        fastgraph.optimize(Function(lambda m, x: (m.linear(x), m.linear(x))).eval(), (torch.randn(2, 8),))


def test_near_ties_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """floor of a value that is an integer in float64 and just below it in float32, or the reverse."""
    model = Function(lambda m, x: (x * (1 / 3) * 3 + x * 1e-9).floor().to(torch.int64)).eval()
    x = torch.arange(1.0, 25).reshape(3, 8)
    captured = capture(model, (x,))
    exact = run(captured, [x], torch.float64)
    eager = run(captured, [x], None)
    assert exact is not None
    assert eager is not None
    assert note(model, x).startswith("verified")
    result = torch.where(torch.rand(3, 8) < 0.5, exact[0], eager[0])
    monkeypatch.setattr(Program, "run", lambda self, state, x: (result[: len(x)].clone(),))
    assert note(model, x).startswith("verified")
    result[1, 1] += 2
    with pytest.raises(RuntimeError, match="output 0 differs from eager's and float64's in 1 of"):
        note(model, x)


def test_in_bfloat16(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    assert note(model, torch.randn(5, 8), dtype=torch.bfloat16).startswith("verified")


def test_the_promise_counts_terms_that_cancel() -> None:
    """Sums of 1000 with a bias of -1000: rounding is 1e-4, whatever the order, and eager's luck does not show it."""
    reference = torch.tensor([1e-3], dtype=torch.float64)
    eager = torch.tensor([1e-3])
    assert tolerance(eager, reference) < 1e-8
    assert tolerance(eager, reference, sums=2000.0) == pytest.approx(
        8 * torch.finfo(torch.float32).eps * 2000, rel=1e-3
    )


@pytest.mark.parametrize(
    ("tail", "factor"),
    [
        (lambda y: y, 1),
        (torch.relu, 1),
        (lambda y: torch.sigmoid(y).flatten(), 0.25),
        (lambda y: torch.log_softmax(y, 1)[:, 1:], 2),
        (lambda y: y + y.relu(), 2),
        (lambda y: F.batch_norm(y, torch.zeros(8), torch.full((8,), 4.0), torch.full((8,), -3.0), eps=0.0), 1.5),
        (lambda y: y * 3, 0),  # not known
    ],
)
def test_sums_of_absolute_terms_are_found_behind_the_last_product(tail: Any, factor: float) -> None:
    model, x = Function(lambda m, x: tail(m.linear(torch.tanh(m.linear(x))))).eval(), torch.randn(3, 8)
    captured = capture(model, (x,))
    sums = Sums(captured.graph)
    evaluate(captured.graph_module, [x], torch.float64, sums)
    with torch.no_grad():
        h, linear = torch.tanh(model.linear(x)), model.linear
        expected = F.linear(h.abs(), linear.weight.abs(), linear.bias.abs()).max().item()
    assert sums.outputs() == [pytest.approx(factor * expected, rel=1e-5)]


class IllConditioned(nn.Module):
    """A layer norm over values that are almost the same: 1e-7 before it is 1e-5 behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = 10 * self.second(self.first(x))
        return F.layer_norm(F.cosine_similarity(y, y + 1, dim=1), (3,))


def test_an_ill_conditioned_model_is_not_blamed_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager's error is as small as it is by luck, which another order of the sums need not have."""
    looked: list[int] = []
    spread = verify.spread
    monkeypatch.setattr(verify, "spread", lambda *arguments: looked.append(1) or spread(*arguments))
    for seed in range(40):
        torch.manual_seed(seed)
        assert note(IllConditioned().eval(), torch.randn(4, 6, 4)).startswith("verified")
    assert looked


def test_an_ill_conditioned_model_is_blamed_for_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = IllConditioned().eval(), torch.randn(4, 6, 4)
    with torch.no_grad():
        result = model(x)
    result[0, 0] += 0.01
    monkeypatch.setattr(Program, "run", lambda self, state, x: (result[: len(x)].clone(),))
    with pytest.raises(RuntimeError, match="output 0: error"):
        note(model, x)
