"""Convolution, ReLU and max-pooling as one op."""
