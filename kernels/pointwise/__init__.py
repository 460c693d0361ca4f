"""A chain of elementwise operations in one pass over memory."""
