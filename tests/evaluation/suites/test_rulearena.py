"""RuleArena: fees and taxes by the rules, verdicts on trades, answers compared as the official scripts compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.metrics import grade
from longspan.evaluation.metrics.rulearena_rules import tax_owed, total_cost, transaction
from longspan.evaluation.published import DataMissing
from longspan.evaluation.suites.rulearena import SOURCE
from longspan.evaluation.suites.rulearena.airline import total_dollars
from longspan.evaluation.suites.rulearena.tax import owed_dollars
from tests.evaluation.suites.local_data import (
    check_data_are_asked_for,
    check_the_cut_spares_the_question,
    put,
    sample,
    scored,
)

ROUTES = ("U.S.", "Cuba", "Peru", "China", "Australia", "Japan")
BASES = {1: (40, 0), 2: (45, 0), 3: (150, 100), 4: (200, 200)}
"""Of the nth bag, in Main Cabin and in Business."""
CARRIED = {"id": 1, "name": "backpack", "size": [20, 10, 8], "weight": 10}


def bag(inches: int, pounds: int) -> dict[str, Any]:
    return {"id": 2, "name": "luggage box", "size": [inches - 20, 10, 10], "weight": pounds}


def info(route: str, cabin: str, *bags: dict[str, Any]) -> dict[str, Any]:
    return {
        "base_price": 100,
        "customer_class": cabin,
        "routine": route,
        "direction": 1,
        "bag_list": [CARRIED, *bags],
    }


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    for number, (main, business) in BASES.items():
        table = tmp_path / "rulearena" / "airline" / "fee_tables" / f"bag_{number}" / "1.csv"
        table.parent.mkdir(parents=True)
        lines = [",Main Cabin,Business", *(f"{route},{main},{business}" for route in ROUTES)]
        table.write_text("\n".join(lines), encoding="utf-8-sig")
    for domain in ("airline", "nba"):
        rules = tmp_path / "rulearena" / domain / "reference_rules.txt"
        rules.parent.mkdir(parents=True, exist_ok=True)
        rules.write_text(f"Rules of {domain}. " + "Fees apply. " * 1500)
    return tmp_path


@pytest.mark.parametrize(
    ("route", "cabin", "bags", "extra"),
    [
        ("U.S.", "Main Cabin", [bag(60, 40)], 40),
        ("U.S.", "Main Cabin", [bag(64, 52), bag(70, 40)], 40 + 30 + 45 + 200),  # small tolerances cost 30, the dearer surcharge counts
        ("Peru", "Main Cabin", [bag(70, 65)], 40 + 150),
        ("Cuba", "Main Cabin", [bag(60, 65)], 40 + 200),
        ("China", "Main Cabin", [bag(60, 80)], 40 + 450),
        ("China", "Business", [bag(60, 65)], 0),  # 70 pounds are free in a bag that is free
        ("China", "Business", [bag(60, 80)], 450),
        ("Australia", "Main Cabin", [bag(60, 65)], 40 + 100),  # the bag is paid for, so 70 pounds are not free
        ("Australia", "Business", [bag(60, 80)], 200),
        # two free bags: the heavy ones are checked first, the third pays its base fee of 100 and nothing for weight
        ("U.S.", "Business", [bag(60, 40), bag(60, 65), bag(60, 65)], 100),
        ("U.S.", "Main Cabin", [bag(60, 40)] * 5, 40 + 45 + 150 + 200 + 200),
    ],
)  # fmt: skip
def test_fees_by_hand(data: Path, route: str, cabin: str, bags: list[dict[str, Any]], extra: int) -> None:
    assert total_dollars(info(route, cabin, *bags), SOURCE) == 100 + extra


def test_an_airline_question(data: Path) -> None:
    put(
        data,
        "rulearena/airline/synthesized_problems/comp_0.jsonl",
        [{"prompt": "Ada flies.", "info": info("U.S.", "Main Cabin", bag(60, 40))}],
    )
    asked = sample("rulearena/airline_0", length=60_000)
    assert asked.context.startswith("Rules of airline.") and asked.question.endswith("\n\nAda flies.")
    assert asked.references == ("140",)
    assert scored("rulearena/airline_0", asked.answer, length=60_000) == {"score": 1.0, "exact": 1.0}
    assert scored("rulearena/airline_0", "The total cost is $141.", length=60_000)["score"] == 0.0
    check_the_cut_spares_the_question("rulearena/airline_0", length=4600)


def test_amounts() -> None:
    def marks(text: str) -> dict[str, float]:
        return grade(total_cost, text, ("1198",))

    assert marks("**The total cost is $1,198.**") == {"score": 1.0, "exact": 1.0}
    assert marks("The total cost is $1,198.00.") == {"score": 0.0, "exact": 1.0}
    assert marks("The total cost is $11,984 in all") == {"score": 1.0, "exact": 0.0}
    assert marks("It costs $1,198.") == {"score": 0.0, "exact": 0.0}


NBA: dict[str, Any] = {
    "n_teams": 1, "n_players": 1, "n_operations": 1,
    "team_situations": ["Team A has a team salary of $1."], "player_situations": ["Player A is 20."],
    "operations": ["A. Team A signs Player A."], "answer": True, "illegal_operation": "A", "problematic_team": "B",
    "relevant_rules": ["cap"],
}  # fmt: skip


def test_an_nba_question(data: Path) -> None:
    legal = {**NBA, "answer": False, "illegal_operation": None, "problematic_team": None}
    put(data, "rulearena/nba/annotated_problems/comp_1.json", [NBA, legal])
    asked = sample("rulearena/nba_1", length=60_000)
    assert (
        asked.question.endswith("Operations:\nA. Team A signs Player A.") and "$140,588,000" in asked.question
    )
    assert scored("rulearena/nba_1", asked.answer, length=60_000) == {"score": 1.0, "violation": 1.0}
    other = "Answer: True. Illegal Operation: A. Problematic Team: A."
    assert scored("rulearena/nba_1", other, length=60_000) == {"score": 0.0, "violation": 1.0}
    assert scored("rulearena/nba_1", other, 1, 60_000) == {"score": 0.0, "violation": 0.0}
    assert grade(transaction, "Answer: **False**.", ("Answer: False",)) == {"score": 1.0, "violation": 1.0}


AMOUNTS = """
wage_tip_compensation household_employee_wage unreported_tip nontaxable_combat_pay taxable_interest ordinary_dividends
qualified_dividends taxable_ira_distributions taxable_pensions taxable_social_security_benefits qualified_business_income
federal_income_tax_withheld earned_income_credit taxable_state_refunds alimony_income sale_of_business rental_real_estate_sch1
farm_income unemployment_compensation other_income educator_expenses hsa_deduction ira_deduction student_loan_interest_deduction
other_adjustments amt_f6251 credit_repayment other_additional_taxes foreign_tax_credit dependent_care retirement_savings
elderly_disabled_credits plug_in_motor_vehicle alt_motor_vehicle medical_dental_expenses state_local_income_or_sales_tax
state_local_real_estate_tax state_local_personal_property_tax other_taxes_paid home_mortgage_interest_and_points
home_mortgage_interest_unreported home_mortgage_points_unreported investment_interest charity_cash charity_non_cash
casualty_and_theft_loss other_itemized_deductions gross_receipts returns_and_allowances cost_of_goods_sold other_inc_sched_c
total_expenses expenses_of_home total_social_security_wages num_qualifying_children num_other_dependents
""".split()


def payer(status: str, wages: float, **more: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(AMOUNTS, 0), "filing_status": status, "age": 30, "spouse_age": 30, "blind": False, "spouse_blind": False,
        "itemized": False, "self_employed": False, "has_student_loans_or_education_expenses": False,
        "wage_tip_compensation": wages, **more,
    }  # fmt: skip


STUDENT = {
    "qualified_student_expenses": 3000, "f8863_part_iii_23": "No", "f8863_part_iii_24": "Yes", "f8863_part_iii_25": "No",
    "f8863_part_iii_26": "No",
}  # fmt: skip


@pytest.mark.parametrize(
    ("who", "owed"),
    [
        # 46,150 is taxed as 46,175: 1,100 + 33,725 * 12% + 1,450 * 22% = 5,466, of which 6,000 is paid
        (payer("single", 60000, federal_income_tax_withheld=6000), -534),
        # two boxes of 1,850 each: 42,450 is taxed as 42,475
        (payer("single", 60000, age=66, blind=True), 1100 + 31475 * 0.12),
        (payer("married filing jointly", 250000), 2200 + 8094 + 101300 * 0.22 + 31550 * 0.24),
        (payer("single", 0, self_employed=True, gross_receipts=10000), 9235 * 0.153),
        (payer("married filing jointly", 120000, num_qualifying_children=2), 10926.5 - 4000),
        (payer("single", 20000, num_qualifying_children=1), 617.5 - 617.5 - 1382.5),
        # 8,475 of the dividends are below 44,625 and free, 1,525 cost 15%
        (payer("single", 50000, ordinary_dividends=10000, qualified_dividends=10000), 4121 + 228.75),
        # local taxes up to 5,000, medical costs above 7.5% of 100,000
        (
            payer(
                "married filing separately", 100000, itemized=True, medical_dental_expenses=10000,
                state_local_real_estate_tax=8000,
            ),
            15663,
        ),
        # half of 2,250, as half of the span is left; 40% of it is refunded
        (payer("single", 85000, has_student_loans_or_education_expenses=True, student_list=[STUDENT]), 10966 - 675 - 450),
        # another answer makes it the lifetime credit: 20% of 3,000, half of it
        (
            payer(
                "single", 85000, has_student_loans_or_education_expenses=True,
                student_list=[{**STUDENT, "f8863_part_iii_26": "Yes"}],
            ),
            10966 - 300,
        ),
    ],
)  # fmt: skip
def test_taxes_by_hand(who: dict[str, Any], owed: float) -> None:
    assert owed_dollars(who) == pytest.approx(owed)


def test_a_tax_question(data: Path) -> None:
    forms = data / "rulearena" / "tax" / "prompt.py"
    forms.parent.mkdir(parents=True)
    forms.write_text(
        'basic_forms = """Name: $name\nStatus: $filing_status\nWages: $wage_tip\nAll: $TBD\n""" \n'
        'itemized_forms = "Schedule A"\nself_employ_forms = "Schedule C, $gross"\nraise SystemExit\n'
    )
    known = {
        "name": "Ada", "age": 30, "spouse_age": 30, "blind": False, "spouse_blind": False, "filing_status": "single",
        "itemized": False, "self_employed": True, "has_student_loans_or_education_expenses": False,
        "child_and_dependent": False, "num_qualifying_children": 0, "num_other_dependents": 0,
        "data": {"wage_tip": 60000, "gross": "$TBD"},
    }  # fmt: skip
    who = payer("single", 60000, federal_income_tax_withheld=6000)
    put(data, "rulearena/tax/synthesized_problems/comp_0.json", [{"dict": known, "pydantic": who}])
    asked = sample("rulearena/tax_0", length=60_000)
    assert asked.context == "Name: Ada\nStatus: single\nWages: $60,000\nAll: [__]\nSchedule C, [__]"
    assert asked.answer == "The total tax overpaid is $534.0000."
    assert scored("rulearena/tax_0", asked.answer, length=60_000) == {"score": 1.0, "exact": 1.0}
    assert scored("rulearena/tax_0", "The total tax owed is $534.", length=60_000) == {
        "score": 0.0,
        "exact": 0.0,
    }
    forms.write_text("basic_forms = (")
    with pytest.raises(ValueError, match="tax/prompt.py is not the official file"):
        put(
            data,
            "rulearena/tax/synthesized_problems/comp_0.json",
            [{"dict": known, "pydantic": {**who, "age": 31}}],
        )
        sample("rulearena/tax_0", length=60_000)


def test_amounts_of_tax() -> None:
    def marks(text: str) -> dict[str, float]:
        return grade(tax_owed, text, ("12345.6",))

    assert marks("The total tax owed is **$12,345.60**.") == {"score": 1.0, "exact": 1.0}
    assert marks("The total tax owed is $12345.60.") == {"score": 0.0, "exact": 1.0}
    assert marks("The total tax overpaid is $12,345.60.") == {"score": 0.0, "exact": 0.0}
    assert marks("Nothing is owed.") == {"score": 0.0, "exact": 0.0}


def test_absent_and_malformed_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(data, "rulearena/nba/annotated_problems/comp_1.json", [NBA, {"answer": False}])
    with pytest.raises(
        ValueError, match=r"row 2 of nba.* is not a row of rulearena .*KeyError: 'team_situations'"
    ):
        sample("rulearena/nba_1")
    far = {**info("U.S.", "Main Cabin", bag(60, 40)), "direction": 0}
    with pytest.raises(DataMissing, match="fee_tables/bag_1/0.csv"):
        total_dollars(far, SOURCE)
    check_data_are_asked_for("rulearena/airline_2", monkeypatch, "airline/synthesized_problems/comp_2.jsonl")
