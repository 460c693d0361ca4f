"""``fastgraph.optimize(engine="inductor")``: torch.compile over the rewritten graph."""

from __future__ import annotations

from fastgraph.bench.backends.fastgraph_direct import FastgraphDirect


class FastgraphInductor(FastgraphDirect):
    """What ``fastgraph.optimize`` gives on CUDA, and on a CPU when asked for; compiled in the first call."""

    name = "fastgraph inductor"
    engine = "inductor"
    own_graph = True
