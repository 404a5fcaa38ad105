"""Shape, data mix and optimisation of the reference model: every number of the recipe, in one place."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A Llama-shaped decoder: grouped heads, RoPE, gated MLP, tied embeddings."""

    vocabulary: int = 8192
    hidden: int = 512
    layers: int = 8
    query_heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 1024
    window_tokens: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def qkv_rows(self) -> int:
        """Rows of the joined query, key and value matrix."""
        return (self.query_heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """One training run.

    buckets: (row length, rows) of every step; all lengths are in every step. task_share: rows with hidden tasks.
    answer_weight: loss weight of an answer token against 1 for text. total_tokens: the schedule's length.
    peak: highest share of the learning rates, below 1 to train on from given weights.
    Learning rates: Muon's is the update's spectral scale (Jordan 2024), AdamW's is for embeddings and norms.
    """

    shape: ModelShape = field(default_factory=ModelShape)
    buckets: tuple[tuple[int, int], ...] = ((512, 24), (1024, 20), (2048, 16), (4096, 16))
    task_share: float = 0.5
    python_share: float = 0.04
    answer_weight: int = 40
    total_tokens: int = 1_150_000_000
    warmup_steps: int = 150
    peak: float = 1.0
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.05
    adam_lr: float = 0.002
    adam_betas: tuple[float, float] = (0.9, 0.95)
    seed: int = 1

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return sum(length * rows for length, rows in self.buckets)

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule."""
        return max(2, self.total_tokens // self.step_tokens)

    def rate(self, step: int) -> float:
        """Share of the full learning rate at `step`: linear warm-up, then linear to zero at the last step."""
        warmup = min(self.warmup_steps, self.total_steps // 10 + 1)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        return self.peak * max(0.0, (self.total_steps - step) / (self.total_steps - warmup))


SMOKE = RecipeConfig(
    shape=ModelShape(hidden=128, layers=2, query_heads=4, kv_heads=2, head_dim=32, mlp=256),
    buckets=((256, 4), (512, 2)),
    total_tokens=120_000,
    warmup_steps=5,
)
"""A two-minute run of the same code on a CPU; it learns next to nothing."""
