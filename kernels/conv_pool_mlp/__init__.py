"""Convolution, ReLU, max-pooling and an mlp over every pooled row as one op."""
