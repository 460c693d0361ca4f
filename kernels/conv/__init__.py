"""Convolutions over maps with channels last."""
