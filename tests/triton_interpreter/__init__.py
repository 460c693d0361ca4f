"""The Triton kernels run by Triton's interpreter, on the CPU. A process is either interpreter or compiler, so these
tests have one of their own: `tests/test_kernels_triton_interpreter.py` starts it."""
