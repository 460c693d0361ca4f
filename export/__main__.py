"""``python -m export``: ONNX files to deploy, and pictures of the models' graphs."""

import sys

NEEDS = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "google.protobuf", "graphviz", "torchviz")
DATA = ("PIL", "sklearn", "torchvision")


def main() -> int:
    """Runs the command line; what keeps the package itself from loading is one line and status 2."""
    try:
        from fastgraph.extras import require

        require(*NEEDS, *DATA, by="python -m export")
        from fastgraph.export import cli
    except (ImportError, RuntimeError) as error:  # a library that is missing, or FASTGRAPH_CPU with a wrong value
        print(f"python -m export: error: {error}", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
