"""Convolutions of every channel by itself, over maps with channels last."""
