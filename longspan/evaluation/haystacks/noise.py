"""RULER's noise: five short sentences, over and over. Retrieval from it is the easiest case."""

from longspan.evaluation.haystacks import Haystack

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def noise_haystack() -> Haystack:
    """An endless supply of the five sentences, one group a line."""
    return Haystack("\n".join([NOISE] * 400))
