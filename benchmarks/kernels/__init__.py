"""Speed of the kernels on a GPU against the strongest dense baseline there: see `__main__`."""
