"""An op with its constant arguments fixed: packed once, called without the dispatcher."""

from typing import Any

import torch

from fastgraph.kernels import native
from fastgraph.kernels.library import Op, Size


class Bound:
    """`op(input, *arguments)` as a function of the input, for arguments that stay what they are.

    The caller sees to it that no gradient is wanted and that the tensors are those that were packed. Whatever the
    kernel does not take goes to the registered op, which also raises the errors.

    kernel: its `run(inputs, outputs, threads)` computes on packed weights; None where no kernel takes these arguments.
    """

    def __init__(self, op: Op, *arguments: Any) -> None:
        op.check_constants(*arguments)
        self.op, self.arguments = op, arguments
        self._packing = op.packing(arguments)
        self.kernel = None if self._packing is None else self._packing.kernel

    def output_size(self, input: torch.Tensor) -> Size | None:
        """Size of the result where the kernel takes this input, fp32, else None. Errors as those of the op."""
        if self._packing is None or not native.is_plain(input, torch.float32):
            return None
        return self.op.result_size(self._packing, input, self.arguments)

    def result_sizes(self, *inputs: torch.Tensor) -> list[Size] | None:
        """`output_size` of the one input as a list, for a fast path."""
        size = self.output_size(*inputs)
        return None if size is None else [size]

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        size = self.output_size(input)
        if size is None:
            result: torch.Tensor = self.op.target(input, *self.arguments)
            return result
        return self.op.run(self.kernel, input, size)
