"""The fused ops `torch.ops.fastgraph.*`, one folder each, and their compiled kernels.

Importing this package registers the ops. It knows nothing of models, graphs or files.
"""

FASTGRAPH = True  # fastgraph/__init__.py looks for it: `kernels` is also the name of another package

from kernels.conv_pool import op as _conv_pool  # noqa: F401
from kernels.conv_pool_mlp import op as _conv_pool_mlp  # noqa: F401
from kernels.mlp import op as _mlp  # noqa: F401
