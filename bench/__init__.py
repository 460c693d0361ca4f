"""``python -m bench``: throughput of both reference models on real data, every backend checked before it is timed."""
