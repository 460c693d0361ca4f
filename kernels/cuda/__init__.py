"""What the Triton kernels share: device functions, tiles, the table of architectures, and how an op reaches them."""
