"""Attention kernels and their naive twins. This package imports torch only."""
