"""Annotations of settings fields: allowed values, their descriptions, and parsing of text."""

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pytest

from tll_jax.annotations import allowed, can_be_read, fits, read


@runtime_checkable
class Sized(Protocol):
    size: int

    @property
    def half(self) -> int: ...


class Square:
    size = 4
    half = 2


class Failing:
    size = (4,)

    @property
    def half(self):
        return self.size // 2


@pytest.mark.parametrize(
    ("annotation", "fitting", "others"),
    [
        (int, [0, -3, 10**400], [1.0, True, "1", None, np.int64(3)]),
        (float, [0.5, 1, np.float64(2.0)], [True, "0.5", None, float("nan"), float("inf"), 10**400]),
        (str, ["", "a"], [b"a", 1, None]),
        (bool, [True, False], [0, 1, "true", None]),
        (int | None, [None, 3], [1.5, "None"]),
        (Literal["none", "both"], ["none", "both"], ["None", None, ""]),
        (Literal[1, 2], [1, 2], [True, 1.0, 3]),
        (tuple[float, float], [(0.2, 1), [0.2, 1.0]], [0.2, (0.2,), (1, 2, 3), ("a", "b"), "ab", {0.1: 1, 0.2: 2}]),
        (tuple[int, ...], [(), (1,), (1, 2, 3)], [1, (1.5,), (True,), None]),
        (tuple[tuple[str, str], ...], [(), (("a", "b"),)], [("a", "b"), (("a",),), "ab"]),
        (dict[str, float] | None, [None, {}, {"a": 1}], [{"a": "b"}, {1: 1.0}, ()]),
        (Sized, [Square(), Failing()], [3, "a", Square, None]),
        (Sized | None, [Square(), None], ["a"]),
        (Any, [3, None, Square()], []),
    ],
)
def test_a_value_fits_its_annotation_as_deep_as_it_goes(annotation, fitting, others):
    assert [value for value in fitting if not fits(value, annotation)] == []
    assert [value for value in others if fits(value, annotation)] == []


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a finite number or None"),
        (tuple[float, float], "two finite numbers, such as (1.0, 2.0)"),
        (tuple[int, ...], "a tuple of whole numbers, such as (1, 2)"),
        (tuple[tuple[str, str], ...], "a tuple of two strings"),
        (tuple[int, str], "2 values"),
        (dict[str, float], "a dict of finite numbers by name"),
        (Literal["none", "both"], "one of none, both"),
        (Sized, "a Sized"),
    ],
)
def test_allowed_values_are_described_in_words(annotation, words):
    assert allowed(annotation) == words


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("-3", int, -3),
        ("3.0", int, "3.0"),
        ("3", float, 3.0),
        ("1e-3", float, 0.001),
        ("True", bool, True),
        ("0", bool, False),
        ("yes", bool, "yes"),
        ("None", int | None, None),
        ("none", str | None, None),
        ("7", int | None, 7),
        ("None", str, "None"),
        ("none", Literal["none", "both"], "none"),
        ("2", Literal[1, 2], 2),
        ("0.2, 1", tuple[float, float], (0.2, 1.0)),
        ("0.5", tuple[float, float], (0.5,)),
        ("0.1,0.2,0.3", tuple[float, float], (0.1, 0.2, 0.3)),
        ("1,", tuple[int, ...], (1,)),
        ("", tuple[int, ...], ()),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ("(1, 2", tuple[int, ...], "(1, 2"),
        ("('a',)", tuple[int, ...], ("a",)),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("(('a', 'b'),)", tuple[tuple[str, str], ...], (("a", "b"),)),
        ("{'a': 1}", dict[str, float] | None, {"a": 1}),
        ("__import__('os')", tuple[str, ...], "__import__('os')"),
    ],
)
def test_text_is_parsed_by_the_annotation(text, annotation, value):
    found = read(text, annotation)
    assert found == value
    assert type(found) is type(value)


def test_settings_objects_cannot_be_parsed_from_text():
    assert not any(map(can_be_read, (Sized, Sized | None, Any, dict[str, Sized], tuple[Sized, ...])))
    assert all(map(can_be_read, (int, str | None, tuple[tuple[str, str], ...], dict[str, float], Literal["a"])))
