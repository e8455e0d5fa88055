"""Number formats shared by the Markdown tables and the HTML pages."""

import math
from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"


def fraction(value: float | None, *, digits: int = 2) -> str:
    """A fraction in [0, 1] or a difference in [-1, 1] without the leading zero: `.52`, `1.00`.

    A small value that would be rounded to zero gets its first significant digit: `.003`. None and NaN become a dash.
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    if value != 0 and abs(value) < 0.5 * 10.0**-digits:
        digits = math.ceil(-math.log10(abs(value)))
    text = f"{abs(value):.{digits}f}"
    text = text[1:] if text.startswith("0.") else text
    return f"{MINUS}{text}" if value < 0 and float(text) != 0 else text


def bounds(low: float, high: float, *, digits: int = 2) -> str:
    """An interval: `[.47, .57]`."""
    return f"[{fraction(low, digits=digits)}, {fraction(high, digits=digits)}]"


def has_interval(estimate: Mapping[str, Any]) -> bool:
    """Whether an estimate has an interval of positive width; chance is exact."""
    low, high = estimate.get("low"), estimate.get("high")
    return low is not None and high is not None and low != high


def estimate(value: Mapping[str, Any]) -> str:
    """A value with its interval, if it has one: `.52 [.47, .57]`."""
    text = fraction(value["value"])
    return f"{text} {bounds(value['low'], value['high'])}" if has_interval(value) else text


def difference(value: float) -> str:
    """A signed difference of fractions with three digits: `+.031`."""
    text = fraction(round(value, 3), digits=3)
    return f"+{text}" if value > 0 and float(text) != 0 else text


def p_value(value: float | None) -> str:
    """A p-value: `.012` or `< .001`; None becomes a dash."""
    if value is None:
        return UNKNOWN
    return "< .001" if value < 0.001 else fraction(value, digits=3)


def rank(value: float) -> str:
    """A rank or a median of ranks: `3`, `3.5`."""
    return f"{value:.1f}".removesuffix(".0")


def count(value: float) -> str:
    """A count, or a mean of counts with one digit: `51`, `51.5`, `1,200`."""
    return f"{value:,.1f}".removesuffix(".0")


def duration(seconds: float) -> str:
    """A duration: `8 s`, `12 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """A number and its noun: `1 pair`, `216 pairs`; `nouns` is the plural if it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"
