"""Annotations of settings fields: whether a value fits, the allowed values in words, and parsing of text."""

import ast
import reprlib
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

NOUNS = {
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    str: ("a string", "strings"),
    bool: ("True or False", "values True or False"),
}
COUNTS = ("no", "one", "two", "three", "four", "five", "six")
TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def shown(value: Any) -> str:
    """The representation of a value for a message, cut to 100 characters."""
    return _short.repr(value)


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value fits the annotation.

    An int fits float, and a list fits tuple; a bool fits neither int nor float; NaN and infinity fit nothing. Any value
    fits an annotation of a kind that settings do not use.
    """
    alternatives = kinds(annotation)
    if len(alternatives) > 1:
        return any(fits(value, alternative) for alternative in alternatives)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in parts)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        return _has_length(value, parts) and all(map(fits, value, _elements(parts, len(value))))
    if origin is dict:
        return isinstance(value, Mapping) and all(
            fits(key, parts[0]) and fits(child, parts[1]) for key, child in value.items()
        )
    return not isinstance(annotation, type) or _is_instance(value, annotation)


def _is_instance(value: Any, kind: type) -> bool:
    if isinstance(value, type):
        return False
    try:
        return isinstance(value, kind)
    except Exception:
        # isinstance with a protocol evaluates properties, which fail if the fields that they read are invalid; those
        # fields are reported on their own.
        return True


def _has_length(value: Any, parts: tuple[Any, ...]) -> bool:
    return len(value) == len(parts) or parts[-1:] == (Ellipsis,)


def _elements(parts: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The annotation of each of `count` elements of a tuple; surplus elements get the last one's."""
    if parts[-1:] == (Ellipsis,):
        return (parts[0],) * count
    return (parts + parts[-1:] * count)[:count]


def entry_annotation(annotation: Any) -> Any:
    """The annotation of the values of a dict; None if the annotation is not a dict."""
    return next((get_args(kind)[1] for kind in kinds(annotation) if get_origin(kind) is dict), None)


def allowed(annotation: Any) -> str:
    """The values that an annotation allows, in words: "two numbers, such as (1.0, 2.0)", "a whole number or None"."""
    *others, last = (_words(kind) for kind in kinds(annotation))
    return f"{', '.join(others)} or {last}" if others else last


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in NOUNS:
        return NOUNS[annotation][0]
    if annotation in (None, types.NoneType):
        return "None"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        example = _example(annotation)
        return _plural(annotation) + ("" if example is None else f", such as {example}")
    if origin is dict:
        return f"a dict of {_plural(parts[1])} by name"
    return with_article(getattr(annotation, "__name__", str(annotation)))


def _plural(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in NOUNS:
        return NOUNS[annotation][1]
    if origin is tuple and parts[-1:] == (Ellipsis,):
        return f"a tuple of {_plural(parts[0])}"
    if origin is tuple and len(set(parts)) == 1 and len(parts) < len(COUNTS):
        return f"{COUNTS[len(parts)]} {_plural(parts[0])}"
    return f"values, each {allowed(annotation)}" if origin is not tuple else f"{len(parts)} values"


def _example(annotation: Any) -> tuple[Any, ...] | None:
    """A tuple of numbers that fits; None for other annotations."""
    parts = get_args(annotation)
    if not parts or not set(parts) <= {int, float, Ellipsis}:
        return None
    count = 2 if parts[-1:] == (Ellipsis,) else len(parts)
    return tuple(part(place) for place, part in enumerate(_elements(parts, count), 1))


def can_be_read(annotation: Any) -> bool:
    """Whether values of the annotation can be parsed from text: numbers, strings, choices, tuples and dicts of them."""
    for kind in kinds(annotation):
        parts = [part for part in get_args(kind) if part is not Ellipsis]
        if kind in NOUNS or get_origin(kind) is Literal:
            return True
        if get_origin(kind) in (tuple, dict) and all(map(can_be_read, parts)):
            return True
    return False


def read(text: str, annotation: Any) -> Any:
    """Parses `text` by the annotation: "1,2" or "(1, 2)" are tuples, "None" is None where that is allowed.

    Text that cannot be parsed is returned as it is, or as another value that does not fit the annotation.
    """
    alternatives = kinds(annotation)
    if types.NoneType in alternatives and text in ("None", "none"):
        return None
    values = [_read(text, kind) for kind in alternatives if kind is not types.NoneType]
    return next((value for value in values if fits(value, annotation)), values[0])


def _read(text: str, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is bool:
        return TRUTH.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    if origin is Literal:
        return next((option for option in parts if str(option) == text), text)
    if origin is tuple and set(text).isdisjoint("()[]{}'\""):
        words = [word.strip() for word in text.split(",")]
        if not words[-1]:
            words.pop()
        return tuple(map(read, words, _elements(parts, len(words))))
    if origin in (tuple, dict):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if origin is dict:
            return value
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return text
