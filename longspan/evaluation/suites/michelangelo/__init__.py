"""Michelangelo: latent structure queries, which only an understanding of the whole text answers.

`latent_list` asks what a list looks like after operations that matter and many more that do not; `mrcr` for the n-th of
several pieces of one kind in a long talk; `idk` for a fact that the text holds, or does not.

Paper: Michelangelo: Long Context Evaluations Beyond Haystacks via Latent Structure Queries (Vodrahalli et al., 2024)
Scored by what is printed (latent_list), by difflib's ratio after the code (mrcr), by the option chosen (idk).
"""

from __future__ import annotations

from typing import Any

from longspan.evaluation.metrics.choice import option_letter
from longspan.evaluation.metrics.text import mrcr as mrcr_ratio
from longspan.evaluation.suites.michelangelo import idk, latent_list, mrcr
from longspan.evaluation.task import Task

CARD: dict[str, Any] = {
    "name": "michelangelo",
    "title": "Michelangelo: Long Context Evaluations Beyond Haystacks via Latent Structure Queries",
    "year": 2024,
    "version": 1,
    "metric": "exact output (latent_list), difflib ratio of the piece after its code (mrcr), accuracy (idk)",
    "differs": [
        "latent_list and idk have no published code and are rebuilt from the paper's description",
        "latent_list is scored by exact output only, without credit for numbers that are nearly right",
        "the pieces of mrcr come from a writer of templates, not from a language model: those of one kind have a ratio of about "
        "0.09 to each other, and picking any of 2, 4 or 8 gives about 0.54, 0.32 or 0.20",
        "mrcr is asked without the two worked examples of the published prompt",
        "idk hides its story in the user's prose; the answer is absent in half of the samples",
    ],
    "paper_id": 253,
    "lengths": "from 1K tokens; mrcr_4 from 1.5K, mrcr_8 from 2.5K",
    "needs": "nothing",
    "licence": "generated here",
}

SAME_KIND = 0.09  # mean ratio of two pieces of one form, topic and style, over 1,500 pairs
LEVELS = (1, 5, 20)
NUM_NEEDLES = (2, 4, 8)

TASKS: dict[str, Task] = {
    **{
        f"latent_list_{level}": Task(
            make=latent_list.latent_list(level),
            ability="state tracking",
            diffusion="high",
            scope="high",
            metric=latent_list.printed,
            chance=latent_list.CHANCE,
            guess=latent_list.guess,
            answers="derived",
        )
        for level in LEVELS
    },
    **{
        f"mrcr_{count}": Task(
            make=mrcr.mrcr(count),
            ability="coreference",
            diffusion="high",
            scope="high",
            metric=mrcr_ratio,
            chance=SAME_KIND,
            guess=mrcr.guess,
            answers="derived",
        )
        for count in NUM_NEEDLES
    },
    "idk": Task(
        make=idk.idk,
        ability="abstention",
        diffusion="low",
        scope="low",
        metric=option_letter,
        chance=1 / 2,
        guess=idk.guess,
        answers="derived",
    ),
}
