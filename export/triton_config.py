"""The configuration of a model in a repository of the Triton Inference Server, written and read as protobuf's text.

The messages below are the part of the server's own `ModelConfig` that is used here, with its names and numbers
(triton-inference-server/common, protobuf/model_config.proto): a name that it does not know is an error here too.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fastgraph.extras import require

require("google.protobuf", by="python -m export")

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from fastgraph.export.runtime import session

MAX_BATCH = 64
DELAY_US = 500
_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16", "tensor(int64)": "TYPE_INT64"}
_DATA_TYPES = {"TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11, "TYPE_FP64": 12, "TYPE_BF16": 14}
# (number, type, message or enum) of each field; a list is repeated
_MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, ["int64"])},
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, ["int64"]),
        "label_filename": (4, "string"),
    },
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, ["int32"]),
        "max_queue_delay_microseconds": (2, "uint64"),
    },
    "ModelConfig": {
        "name": (1, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, ["ModelInput"]),
        "output": (6, ["ModelOutput"]),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "backend": (17, "string"),
    },
}


def config(path: Path, name: str, label_file: str = "") -> str:
    """The text for the ONNX file at ``path``, checked by reading it back.

    ValueError where an input or output has no free first axis of its own, which the server batches along, or a dtype
    that is not known here.
    """
    running = session(path)
    made = _model_config()(name=name, backend="onnxruntime", max_batch_size=MAX_BATCH)
    for values, field in ((running.get_inputs(), made.input), (running.get_outputs(), made.output)):
        for value in values:
            if not value.shape or value.shape[0] != "batch":
                raise ValueError(f"config: {value.name}: the first axis must be the batch; got shape {value.shape}")
            if value.type not in _TYPES:
                raise ValueError(f"config: {value.name}: dtype must be one of {', '.join(_TYPES)}; got {value.type}")
            dims = [size if isinstance(size, int) else -1 for size in value.shape[1:]]
            field.add(name=value.name, data_type=_DATA_TYPES[_TYPES[value.type]], dims=dims)
    if label_file:
        made.output[0].label_filename = label_file
    made.dynamic_batching.preferred_batch_size.extend([8, 16, 32])
    made.dynamic_batching.max_queue_delay_microseconds = DELAY_US
    text = text_format.MessageToString(made)
    assert parse(text) == made
    return str(text)


def parse(text: str) -> Any:
    """The message that the text stands for; ``google.protobuf.text_format.ParseError`` where it stands for none."""
    return text_format.Parse(text, _model_config()())


@cache
def _model_config() -> Any:
    """The class of ``ModelConfig``."""
    scalar = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fastgraph/model_config.proto", package="inference", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    types.value.add(name="TYPE_INVALID", number=0)
    for name, number in _DATA_TYPES.items():
        types.value.add(name=name, number=number)
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            repeated = isinstance(kind, list)
            one = kind[0] if repeated else kind
            field = described.field.add(name=name, number=number)
            field.label = scalar.LABEL_REPEATED if repeated else scalar.LABEL_OPTIONAL
            if one in _MESSAGES or one == "DataType":
                field.type = scalar.TYPE_ENUM if one == "DataType" else scalar.TYPE_MESSAGE
                field.type_name = f".inference.{one}"
            else:
                field.type = getattr(scalar, f"TYPE_{one.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
