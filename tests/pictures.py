"""The reference models' graphs, drawn once for all tests."""

from functools import cache

from fastgraph.bench.cases import informative_net
from fastgraph.data import digits, photograph
from fastgraph.export import graphs
from fastgraph.models import DeepLearningModel


@cache
def deep() -> graphs.Picture:
    """``DeepLearningModel`` on one digit, measured."""
    return graphs.draw(DeepLearningModel.pretrained(), (digits()[0][:1],), measured=True)


@cache
def net() -> graphs.Picture:
    """``Net`` on the photograph, not measured."""
    return graphs.draw(informative_net(), (photograph(),))
