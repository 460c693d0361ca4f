"""Pools over maps with channels last."""
