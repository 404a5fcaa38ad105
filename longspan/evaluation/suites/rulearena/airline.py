"""The airline's fees: a base fee by the number of the bag, and the dearer of a size and a weight surcharge.

A bag whose base fee is nothing may be heavier for free in some cabins and on some routes, so the bags that gain most by it
are checked first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longspan.evaluation.published import Source, read_rows
from longspan.evaluation.suites._files import find_files, missing

__all__ = ["total_dollars"]

NUM_TABLES = 4
FREE_INCHES, TOLERATED_INCHES = 62, 65
FREE_POUNDS, TOLERATED_POUNDS, HEAVY_POUNDS = 50, 53, 70
PRICED_150 = ("Panama", "South America", "Peru", "Colombia", "Ecuador", "Europe", "Israel", "Qatar")
PRICED_450 = ("India", "China", "Japan", "South Korea", "Hong Kong")
HEAVY_FREE_ROUTES = ("Australia", "New Zealand")
HEAVY_FREE_CABINS = ("Business", "First")


def total_dollars(info: Mapping[str, Any], source: Source) -> int:
    """The ticket and all bags but the first, which is carried on.

    Args:
        info: "base_price", "routine" (the place at the other end), "direction" (0 leaves the U.S., 1 returns),
            "customer_class", "bag_list" (each with "size" in inches and "weight" in pounds).
        source: named when the fee tables are absent.
    """
    route, cabin, bags = info["routine"], info["customer_class"], list(info["bag_list"][1:])
    base = [
        _fees(min(place + 1, NUM_TABLES), int(info["direction"]), source)[route][cabin]
        for place in range(len(bags))
    ]
    paid = [_surcharge(bag, route, cabin, free=False) for bag in bags]
    free = [_surcharge(bag, route, cabin, free=True) for bag in bags]
    order = sorted(range(len(bags)), key=lambda bag: free[bag] - paid[bag])
    extra = sum((free if fee == 0 else paid)[bag] for bag, fee in zip(order, base, strict=True))
    return int(info["base_price"]) + sum(base) + extra


def _fees(bag: int, direction: int, source: Source) -> Mapping[str, Mapping[str, int]]:
    pattern = f"airline/fee_tables/bag_{bag}/{direction}.csv"
    found = find_files("rulearena", pattern)
    if not found:
        raise missing("rulearena", pattern, source)
    return _table(found[0], found[0].stat().st_mtime_ns)


@lru_cache(maxsize=2 * NUM_TABLES)
def _table(path: Path, changed: int) -> Mapping[str, Mapping[str, int]]:
    table: dict[str, Mapping[str, int]] = {}
    for row in read_rows(path):
        route, *fees = row.values()  # the head of the first column is empty but for a byte order mark
        table[route] = dict(zip(list(row)[1:], map(int, fees), strict=True))
    return table


def _surcharge(bag: Mapping[str, Any], route: str, cabin: str, *, free: bool) -> int:
    return max(_for_size(bag["size"], route), _for_weight(bag["weight"], route, cabin, free=free))


def _for_size(size: Sequence[int], route: str) -> int:
    if sum(size) <= FREE_INCHES:
        return 0
    if sum(size) <= TOLERATED_INCHES:
        return 30
    return 150 if route in PRICED_150 else 200


def _for_weight(pounds: int, route: str, cabin: str, *, free: bool) -> int:
    """free: the bag's base fee is nothing."""
    if free and route in HEAVY_FREE_ROUTES:
        return 0 if pounds <= HEAVY_POUNDS else 200
    allowed = HEAVY_POUNDS if free and cabin in HEAVY_FREE_CABINS else FREE_POUNDS
    if pounds <= allowed:
        return 0
    if pounds <= TOLERATED_POUNDS:
        return 30
    if pounds <= HEAVY_POUNDS:
        return 200 if route == "Cuba" else 100
    return 450 if route in PRICED_450 else 200
