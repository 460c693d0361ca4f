"""The fused ops `torch.ops.fastgraph.*`, one folder each, and their compiled kernels.

Importing this package registers the ops. It knows nothing of models, graphs or files.
"""

from fastgraph.kernels.conv_pool import op as _conv_pool  # noqa: F401
from fastgraph.kernels.conv_pool_mlp import op as _conv_pool_mlp  # noqa: F401
from fastgraph.kernels.mlp import op as _mlp  # noqa: F401
