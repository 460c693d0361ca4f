"""Reductions and softmax over the last axes."""
