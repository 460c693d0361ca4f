"""Runs an exported model on an image with onnxruntime alone: python client.py MODEL.onnx IMAGE

Needs onnxruntime, numpy and pillow.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def load(path: str, shape: list) -> np.ndarray:
    """The image as the model's input: grey [1, 784] in 0..1, or colour [1, 3, 720, 480] in -1..1."""
    with Image.open(path) as image:
        if len(shape) == 2:
            grey = np.asarray(image.convert("L").resize((28, 28), Image.Resampling.BILINEAR), np.float32)
            return grey.reshape(1, 784) / 255
        colour = np.asarray(image.convert("RGB").resize((480, 720), Image.Resampling.BILINEAR), np.float32)
    return ((colour / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


def main() -> int:
    """Prints the class, or what the outputs are like where there are no classes."""
    if len(sys.argv) != 3:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": load(sys.argv[2], session.get_inputs()[0].shape)})
    labels = json.loads(session.get_modelmeta().custom_metadata_map.get("labels", "[]"))
    if labels:
        best = int(output[0].argmax())
        print(f"class {labels[best]}, probability {output[0, best]:.4f}")
    else:
        print(f"output {list(output.shape)}, {output.min():.4f} to {output.max():.4f}, mean {output.mean():.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
