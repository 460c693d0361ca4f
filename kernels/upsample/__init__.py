"""Resizing maps with channels last."""
