"""A masked-diffusion model past the window it was trained on, beside the causal model it was made of: see `__main__`."""
