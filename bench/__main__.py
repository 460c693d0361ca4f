"""``python -m bench``: measures models on real data with every backend and leaves a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; what keeps the package itself from loading is one line and status 2."""
    try:
        from fastgraph.bench import cli
    except (ImportError, RuntimeError) as error:  # a library that is missing, or FASTGRAPH_CPU with a wrong value
        print(f"python -m bench: error: {error}", file=sys.stderr)
        return 2
    return cli.main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
