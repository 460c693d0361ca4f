"""``python -m bench``: measures both reference models on real data with every backend and leaves a report."""

import sys


def main() -> int:
    """Runs the command line; what keeps the package itself from loading is one line and status 2."""
    try:
        from bench import cli
    except (ImportError, RuntimeError) as error:  # a library that is missing, or FASTGRAPH_CPU with a wrong value
        print(f"python -m bench: error: {error}", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
