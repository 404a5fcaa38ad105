"""Kernels as they are launched on a Hopper GPU, one file an op with a list `CASES`; run as a module to compile them."""
