"""The configuration for the Triton Inference Server is written as its schema has it, or not at all."""

from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from torch import nn

from fastgraph import export
from fastgraph.export import triton_config


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "model.onnx"
    export.to_onnx(nn.Conv2d(3, 2, 3).eval(), (torch.rand(2, 3, 8, 8),), path)
    return path


def test_what_is_written_reads_back(file: Path) -> None:
    made = triton_config.parse(triton_config.config(file, "conv", "labels.txt"))
    assert (made.name, made.backend, made.max_batch_size) == ("conv", "onnxruntime", triton_config.MAX_BATCH)
    ((given,), (result,)) = made.input, made.output
    assert (given.name, given.data_type, list(given.dims)) == ("input", 11, [3, -1, -1])
    assert (result.name, list(result.dims), result.label_filename) == ("output", [2, -1, -1], "labels.txt")
    assert list(made.dynamic_batching.preferred_batch_size) == [8, 16, 32]
    assert made.dynamic_batching.max_queue_delay_microseconds == 500


@pytest.mark.parametrize("text", ['nam: "x"', 'input { dims: "3" }', "input { data_type: TYPE_FLOAT }"])
def test_what_the_schema_does_not_have_is_refused(text: str) -> None:
    with pytest.raises(text_format.ParseError):
        triton_config.parse(text)


def test_an_output_without_a_batch_is_refused(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(-1, 2)

    export.to_onnx(Rows().eval(), (torch.rand(2, 4),), tmp_path / "rows.onnx")
    with pytest.raises(ValueError, match=r"config: output: the first axis must be the batch; got shape \["):
        triton_config.config(tmp_path / "rows.onnx", "rows")
