"""Transposed convolutions over maps with channels last."""
