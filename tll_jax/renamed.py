"""Former names, of 0.1.0, of classes, fields, flags, systems and folders: accepted for one release, with a warning.

In folders of studies they are read for good, without a warning.
"""

import functools
import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tll_jax.serialize import first_names

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind")

MODELS, FORMER_MODELS = "models", "arms"
"""Present and former name of the folder of a study's trained models, and of the field of its settings."""
SYSTEMS = "systems"
FORMER_SYSTEMS = {
    "lite0-rca": "lite0-match",
    "lite0-rca-flip": "lite0-match-flip",
    "lite0-csls": "lite0-scaled",
    "lite2-rca": "lite2-match",
    "alexnet-rca": "alexnet-match",
    "vgg16-rca": "vgg16-match",
    "ensemble-csls": "ensemble-scaled",
}
"""Former names of systems of the package's own studies, by their present ones."""
PRESENT_SYSTEMS = {former: present for present, former in FORMER_SYSTEMS.items()}


def warn_of_old_name(old: str, new: str, where: str) -> None:
    """Warns that a field, class or flag was renamed."""
    name = f"{where}.{old}" if where else old
    logger.warning("%s is now called %s; the old name works in this release and not in the next", name, new)


def with_first_names(kind: type[Kind]) -> type[Kind]:
    """A class decorator, above `dataclass`, that also accepts renamed fields under their former names, with a warning;
    see `serialize.renamed`."""
    present = first_names(kind)
    construct = kind.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *values: Any, **fields: Any) -> None:
        for old in present.keys() & fields.keys():
            warn_of_old_name(old, present[old], kind.__name__)
            fields[present[old]] = fields.pop(old)
        construct(self, *values, **fields)

    setattr(kind, "__init__", __init__)  # noqa: B010 - mypy refuses the plain assignment
    for old, new in present.items():
        setattr(kind, old, _field_of(new, old, kind.__name__))
    return kind


def _field_of(new: str, old: str, class_name: str) -> property:
    def read(self: Any) -> Any:
        warn_of_old_name(old, new, class_name)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        warn_of_old_name(old, new, class_name)
        setattr(self, new, value)

    return property(read, write)


def first_class_names(module_name: str, **present: str) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a module with renamed classes.

    Args:
      present: present names by the former ones."""

    def find(name: str) -> Any:
        module = importlib.import_module(module_name)
        if name not in present:
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        warn_of_old_name(name, present[name], module_name)
        # Cached, because importing from a package looks a name up twice.
        found = vars(module)[name] = getattr(module, present[name])
        return found

    return find


def present_system(name: str) -> str:
    """The present name of a system that may be given by its former one, with a warning."""
    present = PRESENT_SYSTEMS.get(name, name)
    if present != name:
        warn_of_old_name(name, present, "")
    return present


def former_place(place: str) -> str:
    """The path of a run within its study under former names: "arms/barlow/seed-0" for "models/barlow/seed-0"."""
    room, name, *rest = place.split("/")
    if room == MODELS:
        room = FORMER_MODELS
    elif room == SYSTEMS:
        name = FORMER_SYSTEMS.get(name, name)
    return "/".join([room, name, *rest])


def present_place(place: str) -> str:
    """The inverse of `former_place`."""
    room, name, *rest = place.split("/")
    if room == FORMER_MODELS:
        room = MODELS
    elif room == SYSTEMS:
        name = PRESENT_SYSTEMS.get(name, name)
    return "/".join([room, name, *rest])


def run_folder(path: Path) -> Path:
    """The folder of a run that may be given under its former name, with a warning."""
    parts = path.parts
    rooms = [index for index, part in enumerate(parts[:-1]) if part in (FORMER_MODELS, SYSTEMS)]
    if path.exists() or not rooms:
        return path
    place = "/".join(parts[rooms[-1] :])
    present = Path(*parts[: rooms[-1]], present_place(place))
    if present == path or not present.exists():
        return path
    warn_of_old_name(str(path), str(present), "")
    return present
