"""The income tax owed by Form 1040 of 2023 with its schedules 1 to 3, A, C, SE, 8812 and Form 8863, as the questions state them.

The names of amounts are those of the published questions. Lines that the questions leave out (capital gains, estimated
payments) are nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["owed_dollars"]

Payer = Mapping[str, Any]

JOINT, SEPARATE, SINGLE = "married filing jointly", "married filing separately", "single"
HEAD, SURVIVING = "head of household", "qualifying surviving spouse"
DEDUCTIONS = {SINGLE: 13850, SEPARATE: 13850, JOINT: 27700, SURVIVING: 27700, HEAD: 20800}
UNMARRIED_BOX, MARRIED_BOX = 1850, 1500
"""Added to the deduction for each of: 65 or older, blind."""
RATES = (0.10, 0.12, 0.22, 0.24, 0.32, 0.35, 0.37)
BRACKETS: Mapping[str, Sequence[float]] = {
    SINGLE: (0, 11000, 44725, 95375, 182100, 231250, 578125, math.inf),
    SEPARATE: (0, 11000, 44725, 95375, 182100, 231250, 346875, math.inf),
    JOINT: (0, 22000, 89450, 190750, 364200, 462500, 693750, math.inf),
    SURVIVING: (0, 22000, 89450, 190750, 364200, 462500, 693750, math.inf),
    HEAD: (0, 15700, 59850, 95350, 182100, 231250, 578100, math.inf),
}
TABLE_ENDS, TABLE_STEP = 100_000, 50
UNTAXED_DIVIDENDS = {SINGLE: 44625, SEPARATE: 44625, JOINT: 89250, SURVIVING: 89250, HEAD: 59750}
LOW_DIVIDENDS = {SINGLE: 492300, SEPARATE: 276900, JOINT: 553850, SURVIVING: 523050, HEAD: 523050}
SOCIAL_SECURITY_LIMIT = 160_200


def owed_dollars(payer: Payer) -> float:
    """What is owed, negative where too much was paid.

    Args:
        payer: the "pydantic" part of a published problem.
    """
    profit, social, deductible = _self_employment(payer)
    wages = _sum(payer, "wage_tip_compensation", "household_employee_wage", "unreported_tip")
    income = wages + profit + _sum(
        payer, "taxable_interest", "ordinary_dividends", "taxable_ira_distributions", "taxable_pensions",
        "taxable_social_security_benefits", "taxable_state_refunds", "alimony_income", "sale_of_business",
        "rental_real_estate_sch1", "farm_income", "unemployment_compensation", "other_income",
    )  # fmt: skip
    adjusted = income - deductible - _sum(
        payer, "educator_expenses", "hsa_deduction", "ira_deduction", "student_loan_interest_deduction",
        "other_adjustments",
    )  # fmt: skip
    deduction = _itemized(payer, adjusted) if payer["itemized"] else _standard(payer)
    taxable = max(adjusted - deduction - payer["qualified_business_income"], 0)
    tax = _tax_with_dividends(payer, taxable) + _sum(payer, "amt_f6251", "credit_repayment")
    refundable_education, education = _education(payer, adjusted, tax)
    earned = wages + payer["nontaxable_combat_pay"] + profit
    children, refundable_children = _children(
        payer,
        adjusted,
        tax,
        education,
        earned=max(earned, 0) - (deductible if earned > 0 else 0),
        social=deductible,
    )
    credits = education + children + _sum(
        payer, "foreign_tax_credit", "dependent_care", "retirement_savings", "elderly_disabled_credits",
        "plug_in_motor_vehicle", "alt_motor_vehicle",
    )  # fmt: skip
    total = tax - credits + payer["other_additional_taxes"] + social
    paid = _sum(payer, "federal_income_tax_withheld", "earned_income_credit")
    return float(total - paid - refundable_children - refundable_education)


def _sum(payer: Payer, *names: str) -> float:
    return float(sum(payer[name] for name in names))


def _self_employment(payer: Payer) -> tuple[float, float, float]:
    """Schedules C and SE: net profit, self-employment tax, and the half of it that is deducted."""
    if not payer["self_employed"]:
        return 0.0, 0.0, 0.0
    profit = _sum(payer, "gross_receipts", "other_inc_sched_c") - _sum(
        payer, "returns_and_allowances", "cost_of_goods_sold", "total_expenses", "expenses_of_home"
    )
    base = profit * 0.9235 if profit > 0 else profit
    if base < 400:
        return profit, 0.0, 0.0
    room = max(SOCIAL_SECURITY_LIMIT - payer["total_social_security_wages"], 0)
    tax = base * 0.029 + min(base, room) * 0.124
    return profit, tax, tax * 0.5


def _standard(payer: Payer) -> float:
    status = payer["filing_status"]
    boxes = (payer["age"] >= 65) + payer["blind"]
    if status == JOINT:
        boxes += (payer["spouse_age"] >= 65) + payer["spouse_blind"]
    return float(DEDUCTIONS[status] + boxes * (UNMARRIED_BOX if status in (SINGLE, HEAD) else MARRIED_BOX))


def _itemized(payer: Payer, adjusted: float) -> float:
    """Schedule A."""
    medical = max(payer["medical_dental_expenses"] - 0.075 * adjusted, 0)
    local = min(
        _sum(payer, "state_local_income_or_sales_tax", "state_local_real_estate_tax", "state_local_personal_property_tax"),
        5000 if payer["filing_status"] == SEPARATE else 10000,
    )  # fmt: skip
    return medical + local + _sum(
        payer, "other_taxes_paid", "home_mortgage_interest_and_points", "home_mortgage_interest_unreported",
        "home_mortgage_points_unreported", "investment_interest", "charity_cash", "charity_non_cash",
        "casualty_and_theft_loss", "other_itemized_deductions",
    )  # fmt: skip


def _tax(income: float, status: str) -> float:
    """By the table below 100,000 dollars, which taxes the middle of each step of 50; by the brackets above."""
    if income == 0:
        return 0.0
    if income < TABLE_ENDS:
        income = math.floor(income / TABLE_STEP) * TABLE_STEP + TABLE_STEP / 2
    cuts = BRACKETS[status]
    return sum(
        (min(income, high) - low) * rate for low, high, rate in zip(cuts[:-1], cuts[1:], RATES, strict=True) if income >= low
    )  # fmt: skip


def _tax_with_dividends(payer: Payer, taxable: float) -> float:
    """Qualified dividends are taxed at 0, 15 or 20 per cent where that is less."""
    status, dividends = payer["filing_status"], payer["qualified_dividends"]
    whole = _tax(taxable, status)
    if dividends <= 0:
        return whole
    rest, low = max(taxable - dividends, 0), min(taxable, UNTAXED_DIVIDENDS[status])
    untaxed = low - min(rest, low)
    at_rates = min(taxable, dividends) - untaxed
    at_15 = min(at_rates, max(min(taxable, LOW_DIVIDENDS[status]) - rest - untaxed, 0))
    return min(at_15 * 0.15 + (at_rates - at_15) * 0.20 + _tax(rest, status), whole)


def _education(payer: Payer, adjusted: float, tax: float) -> tuple[float, float]:
    """Form 8863: the refundable part of the American opportunity credit, and the credits that lower the tax."""
    if not payer["has_student_loans_or_education_expenses"]:
        return 0.0, 0.0
    opportunity = lifetime = 0.0
    for student in payer["student_list"]:
        spent = student["qualified_student_expenses"]
        answers = [student[f"f8863_part_iii_{line}"] for line in (23, 24, 25, 26)]
        if answers == ["No", "Yes", "No", "No"]:
            opportunity += min(spent, 2000) + max(min(spent, 4000) - 2000, 0) * 0.25
        else:
            lifetime += spent
    limit, span = (180_000, 20_000) if payer["filing_status"] == JOINT else (90_000, 10_000)
    left = limit - adjusted
    if left <= 0:
        return 0.0, 0.0
    share = 1.0 if left >= span else round(left / span, 3)
    refundable = opportunity * share * 0.40 if payer["age"] >= 24 else 0.0
    lowering = min(lifetime, 10_000) * 0.2 * share + opportunity * share - refundable
    room = tax - _sum(payer, "foreign_tax_credit", "dependent_care", "elderly_disabled_credits")
    return refundable, min(lowering, room)


def _children(
    payer: Payer, adjusted: float, tax: float, education: float, *, earned: float, social: float
) -> tuple[float, float]:
    """Schedule 8812: the credit for children and other dependents, and the additional one that is refunded.

    Args:
        earned: earned income less the deducted half of self-employment tax. social: that half.
    """
    children, others = payer["num_qualifying_children"], payer["num_other_dependents"]
    above = max(adjusted - (400_000 if payer["filing_status"] == JOINT else 200_000), 0)
    credit = children * 2000 + others * 500 - math.ceil(above / 1000) * 1000 * 0.05
    if credit <= 0:
        return 0.0, 0.0
    room = tax - education - _sum(
        payer, "foreign_tax_credit", "dependent_care", "retirement_savings", "elderly_disabled_credits"
    )  # fmt: skip
    lowering = min(credit, room)
    most = min(credit - lowering, children * 1600)
    if most <= 0:
        return lowering, 0.0
    by_income = max(earned - 2500, 0) * 0.15
    if children >= 3:
        by_income = max(by_income, social)
    return lowering, min(most, by_income)
