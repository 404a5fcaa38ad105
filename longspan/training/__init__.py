"""Training that grows a model's window: one loop, and schemes that say what it shows the model of positions.

A scheme is one file in `schemes/`, found by its place; see `scheme.py` for its contract. The loop, data, resuming and
export are shared by all, so that schemes compare at the same base, data and tokens.
"""
