"""A chain of Linear layers with activations as one op."""
