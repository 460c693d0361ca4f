"""A PyTorch model as an ONNX file, and an onnxruntime session that runs it where it was asked to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def to_onnx(model: nn.Module, example_inputs: tuple[Tensor, ...], path: str | Path) -> None:
    """Writes ``model`` as one ONNX file that takes any batch.

    The first axis of every input is dynamic and named ``batch``. The inputs are named ``input`` and the outputs
    ``output``, numbered (``input_0``, ``input_1``) where there are several. Weights keep their dtype and lie in the
    file itself; no path of the machine that exported is in it.

    Args:
        model: a module in eval mode that ``torch.export`` takes.
        example_inputs: the inputs of one call, each ``[B, ...]``; only shapes and dtypes matter, any ``B``.
        path: the file to write.

    Raises:
        TypeError: ``example_inputs`` is not a tuple of tensors.
        ValueError: ``example_inputs`` is empty, has a tensor without axes, or ``model`` is in training mode.
        torch.onnx.OnnxExporterError: the model cannot be exported.
    """
    _check(model, example_inputs)
    batch = torch.export.Dim("batch")  # without a name the axis would be called s77 or the like
    with warnings.catch_warnings():
        # Said where a second input shares the axis, which is what is meant here.
        warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")
        program = torch.onnx.export(
            model,
            tuple(_at_least_two_rows(tensor) for tensor in example_inputs),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in example_inputs),
            verbose=False,
        )
    assert program is not None  # torch.onnx.export returns None only without dynamo
    _rename("input", program.model.graph.inputs)
    _rename("output", program.model.graph.outputs)
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # file paths of this machine
    program.save(path, external_data=False)


def session(path: str | Path, *, provider: str = "cpu", threads: int | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime session for the ONNX file at ``path`` that really runs on ``provider``.

    All graph optimisations on; operators run one after another, each on ``threads`` threads.

    Args:
        path: the ONNX file.
        provider: ``"cpu"`` or ``"cuda"``.
        threads: threads within an operator; by default ``torch.get_num_threads()``.

    Raises:
        ValueError: ``provider`` is neither of the two.
        RuntimeError: onnxruntime could not get ``provider`` and would have used another one without saying so.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"session: provider must be one of {', '.join(PROVIDERS)}; got {provider!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    made = onnxruntime.InferenceSession(path, options, providers=[PROVIDERS[provider]])
    got = made.get_providers()
    if got[0] != PROVIDERS[provider]:
        raise RuntimeError(
            f"session: provider {provider!r} ({PROVIDERS[provider]}) cannot be had here; "
            f"onnxruntime offers {', '.join(got)} instead"
        )
    return made


def _check(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    """Raises what ``to_onnx`` says it raises before anything is traced."""
    if not isinstance(example_inputs, tuple) or not all(isinstance(tensor, Tensor) for tensor in example_inputs):
        raise TypeError(f"to_onnx: example_inputs must be a tuple of tensors; got {type(example_inputs).__name__}")
    if not example_inputs or any(tensor.dim() == 0 for tensor in example_inputs):
        shapes = [tuple(tensor.shape) for tensor in example_inputs]
        raise ValueError(
            f"to_onnx: example_inputs must be tensors with a batch axis, at least one; got shapes {shapes}"
        )
    if model.training:
        raise ValueError("to_onnx: model must be in eval mode (dropout and batch-norm differ); call model.eval() first")


def _at_least_two_rows(tensor: Tensor) -> Tensor:
    """``tensor``, or two rows of zeros like it: torch.export burns a batch of 0 or 1 into the graph."""
    return tensor if tensor.shape[0] >= 2 else tensor.new_zeros((2, *tensor.shape[1:]))


def _rename(stem: str, values: Sequence) -> None:
    """Names graph inputs or outputs ``stem``, or ``stem_0``, ``stem_1``, .. when there are several."""
    for index, value in enumerate(values):
        value.name = stem if len(values) == 1 else f"{stem}_{index}"
