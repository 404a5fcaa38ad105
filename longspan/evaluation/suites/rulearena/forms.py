"""Tax forms filled in for a payer: the official texts, which stand in a Python file and are read without running it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from longspan.evaluation.published import Source
from longspan.evaluation.suites._files import find_text

__all__ = ["filled_forms"]

FORMS_FILE = "tax/prompt.py"
ALWAYS = "basic_forms"
WHERE: Mapping[str, str] = {
    "itemized": "itemized_forms",
    "self_employed": "self_employ_forms",
    "has_student_loans_or_education_expenses": "edu_forms",
    "child_and_dependent": "schedule_8812",
}
"""What holds of a payer to the form it needs."""
TO_BE_FOUND, BLANK = "$TBD", "[__]"
PERSONAL = (
    "name", "age", "spouse_age", "blind", "spouse_blind", "filing_status", "itemized", "num_qualifying_children",
    "num_other_dependents",
)  # fmt: skip


def filled_forms(payer: Mapping[str, Any], source: Source) -> str:
    """The forms that a payer needs, with what is known; the other lines hold "[__]".

    Args:
        payer: the "dict" part of a published problem.
        source: named when the forms are absent.
    """
    texts = _texts(find_text("rulearena", FORMS_FILE, source))
    forms = "".join(texts[name] for name in (ALWAYS, *(form for need, form in WHERE.items() if payer[need])))
    # In the order of the data, as some names begin with others.
    for name, value in payer["data"].items():
        forms = forms.replace(f"${name}", value if isinstance(value, str) else f"${value:,}")
    forms = forms.replace(TO_BE_FOUND, BLANK)
    for name in PERSONAL:
        forms = forms.replace(f"${name}", str(payer[name]))
    return forms


@lru_cache(maxsize=2)
def _texts(code: str) -> Mapping[str, str]:
    """The strings that a Python file gives names to at its top level."""
    try:
        body = ast.parse(code).body
    except SyntaxError as error:
        raise ValueError(
            f"{FORMS_FILE} is not the official file (line {error.lineno}); fetch it anew"
        ) from error
    return {
        one.targets[0].id: one.value.value
        for one in body
        if isinstance(one, ast.Assign)
        and isinstance(one.targets[0], ast.Name)
        and isinstance(one.value, ast.Constant)
        and isinstance(one.value.value, str)
    }
