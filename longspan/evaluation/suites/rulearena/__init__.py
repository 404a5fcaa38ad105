"""RuleArena: apply long written rules: an airline's bag fees, the NBA's rules for contracts and trades, income tax forms.

Answers are worked out by the rules (airline, tax) or annotated (nba), and compared as the official scripts do.

Paper: RuleArena: A Benchmark for Rule-Guided Reasoning with LLMs in Real-World Scenarios (Zhou et al., 2024)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longspan.evaluation.metrics.rulearena_rules import tax_owed, total_cost, transaction
from longspan.evaluation.published import Question, Source
from longspan.evaluation.suites._files import GroupedTask, Row, find_text
from longspan.evaluation.suites.rulearena.airline import total_dollars
from longspan.evaluation.suites.rulearena.forms import filled_forms
from longspan.evaluation.suites.rulearena.tax import owed_dollars

CARD: dict[str, Any] = {
    "name": "rulearena",
    "title": "RuleArena: A Benchmark for Rule-Guided Reasoning with LLMs in Real-World Scenarios",
    "year": 2024,
    "version": 1,
    "metric": "accuracy of the final amount (airline, tax) or verdict (nba)",
    "differs": [
        "precision and recall of the rules applied are not here: officially GPT-4 reads them out of the answer",
        "instructions are in our own words, without the worked example (the official runs are given with and without it)",
        "fees and taxes are worked out here anew (the fees from the official tables); all 600 equal the official program's",
        "the forms are filled in as officially; the variants with textual, distracting or meaningless rules are not here",
    ],
    "paper_id": 230,
    "lengths": "6K (airline), 25K (nba) and 6K to 12K (tax) tokens",
    "needs": "the folders airline, nba and tax of the official repository",
    "licence": "MIT",
    "citation": "Zhou et al., 2024",
}

SOURCE = Source(
    hub=None,
    licence="MIT",
    citation="Zhou et al., RuleArena: A Benchmark for Rule-Guided Reasoning with LLMs in Real-World Scenarios, ACL 2025",
    url="https://github.com/SkyRiver-2000/RuleArena",
)
AIRLINE = (
    "By the airline's rules above, work out what the passenger pays in all: the ticket and every checked bag. Go step by step and leave "
    'no bag out. End with the sentence "The total cost is $xxx.", where xxx is a number.'
)
TAX = (
    "By the forms and rules above, work out step by step the income tax that this payer owes. Fill in every field marked [__], and round "
    'only where the forms say so. End with "The total tax owed is $xxx." or, if too much was paid, "The total tax overpaid is $xxx.", '
    "where xxx is a number."
)
NBA = (
    "Does any of the operations below break the rules above? Take it that in the year before (2023-24) the Salary Cap was $136,000,000 and "
    "the Average Player Salary $9,700,000; that this year (2024-25) the Salary Cap is $140,588,000, the Luxury Tax $170,814,000, the "
    "First Apron Level $178,132,000 and the Second Apron Level $188,931,000; and that the team salaries given leave out contracts that end "
    "with 2023-24. Name every Salary Cap Exception that you think is used. End with one of\n"
    '"Answer: False." if no rule is broken;\n'
    '"Answer: True. Illegal Operation: X. Problematic Team: Y." if Team Y breaks one in operation X; X and Y are single capital letters.'
)


def _airline(row: Row) -> Iterable[Question]:
    cost = str(total_dollars(row["info"], SOURCE))
    yield Question(
        context=find_text("rulearena", "airline/reference_rules.txt", SOURCE),
        question=f"{AIRLINE}\n\n{row['prompt']}",
        references=(cost,),
        answer=f"The total cost is ${cost}.",
        details={"num_bags": len(row["info"]["bag_list"])},
    )


def _tax(row: Row) -> Iterable[Question]:
    owed = owed_dollars(row["pydantic"])
    yield Question(
        context=filled_forms(row["dict"], SOURCE),
        question=TAX,
        references=(repr(owed),),
        answer=f"The total tax {'overpaid' if owed < 0 else 'owed'} is ${abs(owed):,.4f}.",
        details={"status": row["dict"]["filing_status"]},
    )


def _nba(row: Row) -> Iterable[Question]:
    verdict = "Answer: False"
    if row["answer"]:
        verdict = f"Answer: True. Illegal Operation: {row['illegal_operation']}. Problematic Team: {row['problematic_team']}"
    told = [
        "\n".join([f"{name}:", *row[field]])
        for name, field in (
            ("Team Situations", "team_situations"),
            ("Player Situations", "player_situations"),
            ("Operations", "operations"),
        )
    ]
    yield Question(
        context=find_text("rulearena", "nba/reference_rules.txt", SOURCE),
        question="\n\n".join([NBA, *told]),
        references=(verdict,),
        answer=f"{verdict}.",
        details={"rules": list(row["relevant_rules"]), "num_operations": row["n_operations"]},
    )


TASKS: dict[str, GroupedTask] = {
    **{
        f"airline_{level}": GroupedTask(
            suite="rulearena", source=SOURCE, file=f"airline/synthesized_problems/comp_{level}.jsonl", parse=_airline,
            max_new_tokens=4096, ability="rules", diffusion="high", scope="high", metric=total_cost,
            answers="derived",
        )
        for level in range(3)
    },
    **{
        f"nba_{level}": GroupedTask(
            suite="rulearena", source=SOURCE, file=f"nba/annotated_problems/comp_{level}.json", parse=_nba,
            max_new_tokens=4096, ability="rules", diffusion="high", scope="high", metric=transaction,
            answers="derived",
        )
        for level in range(3)
    },
    **{
        f"tax_{level}": GroupedTask(
            suite="rulearena", source=SOURCE, file=f"tax/synthesized_problems/comp_{level}.json", parse=_tax,
            max_new_tokens=8192, ability="rules", diffusion="high", scope="high", metric=tax_owed,
            answers="derived",
        )
        for level in range(3)
    },
}  # fmt: skip
