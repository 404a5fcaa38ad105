"""Training of cartridges: a small KV cache for one document, learned by self-study and context distillation."""
