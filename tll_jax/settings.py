"""Validation of settings: trees of dataclasses whose values fit the annotations of their fields and pass `check`."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from tll_jax.annotations import allowed, entry_annotation, fits, shown
from tll_jax.errors import InvalidValue

LARGEST_SEED = 2**32 - 1
"""JAX silently truncates larger seeds."""


def require(condition: bool, field_name: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidValue(f"{field_name} is {value!r}; it must be {allowed}")


def validate(settings: Any, *, path: str = "config") -> None:
    """Checks that all values of a settings tree fit their annotations, then calls `check` on every settings value.

    Raises:
      ValueError: names the dotted path, the value and what is allowed.
    """
    check_types(settings, path=path)
    _check(settings, path=path)


def check_types(value: Any, annotation: Any = Any, *, path: str) -> None:
    """Raises ValueError if `value`, or a value below it, does not fit its annotation or has a type that settings cannot
    hold."""
    if isinstance(value, type):
        raise InvalidValue(f"{path} is the class {value.__name__}; write {value.__name__}(...)")
    entries = entry_annotation(annotation)
    if isinstance(value, Mapping) and entries is not None:
        names = [name for name in value if not isinstance(name, str)]
        require(not names, f"a name in {path}", next(iter(names), None), "a string")
        annotations = dict.fromkeys(value, entries)
    elif fits(value, annotation):
        annotations = field_annotations(value)
    else:
        raise InvalidValue(f"{path} is {shown(value)}; it must be {allowed(annotation)}")
    plain = value is None or isinstance(value, str | bool | int | float | tuple | list | Mapping)
    if not plain and not dataclasses.is_dataclass(value):
        raise InvalidValue(f"{path} is {shown(value)}; settings hold numbers, strings, tuples, dicts and dataclasses")
    for name, child in _children(value):
        check_types(child, annotations.get(name, Any), path=f"{path}.{name}")


def field_annotations(settings: Any) -> dict[str, Any]:
    """Annotations of the fields of a dataclass, by name; empty for other values."""
    if not dataclasses.is_dataclass(settings):
        return {}
    entries = {entry.name: entry.type for entry in dataclasses.fields(settings) if entry.init}
    if not any(isinstance(annotation, str) for annotation in entries.values()):
        return entries
    try:
        hints = get_type_hints(type(settings))
    except Exception:
        # The annotations use names that only exist for type checkers.
        hints = {}
    return {name: hints.get(name, Any) for name in entries}


def _check(settings: Any, *, path: str) -> None:
    if hasattr(settings, "check"):
        try:
            settings.check()
        except ValueError as error:
            raise InvalidValue(f"{path}: {error}") from error
    for name, child in _children(settings):
        _check(child, path=f"{path}.{name}")


def separate(settings: Any) -> Any:
    """A copy of settings in which no dataclass or dict is shared, so that setting a field changes one place only."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return dataclasses.replace(settings, **{name: separate(child) for name, child in _children(settings)})
    if isinstance(settings, Mapping):
        return {name: separate(child) for name, child in settings.items()}
    if isinstance(settings, tuple | list):
        return type(settings)(map(separate, settings))
    return settings


def _children(settings: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(settings):
        for entry in dataclasses.fields(settings):
            if entry.init:
                yield entry.name, getattr(settings, entry.name)
    elif isinstance(settings, Mapping):
        yield from settings.items()
    elif isinstance(settings, tuple | list):
        yield from ((str(i), child) for i, child in enumerate(settings))
