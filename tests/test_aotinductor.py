"""An optimized module's graph goes through torch.export and AOTInductor: the fused ops with a free batch."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fastgraph
from tests.reference import assert_close_to_reference, random, scaled


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_package_computes_the_same(device: str, generator: torch.Generator, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = scaled(nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 7), nn.LayerNorm(7))).to(device)
    x = random(generator, (5, 24)).to(device)
    fast = fastgraph.optimize(model, (x,))
    free = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(fast, (x,), dynamic_shapes=(free,))
    calls = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert calls == ["fastgraph.mlp.default", "aten.layer_norm.default"]  # one kept, one compiled behind it
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for batch in (5, 2, 33):
        x = random(generator, (batch, 24)).to(device)
        with torch.no_grad():
            assert_close_to_reference(loaded(x), model(x), model.double()(x.double()))
        model.float()
