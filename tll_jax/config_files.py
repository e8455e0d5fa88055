"""Loading of a study from a config file, and setting of its fields from the command line."""

import dataclasses
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

import tll_jax
from tll_jax.annotations import allowed, can_be_read, entry_annotation, fits, kinds, read, shown, with_article
from tll_jax.errors import InvalidValue, MissingFile, UnknownName, UserError
from tll_jax.files import given_path
from tll_jax.renamed import PRESENT_SYSTEMS, warn_of_old_name
from tll_jax.serialize import first_names
from tll_jax.settings import field_annotations, separate
from tll_jax.study.settings import Study

MODULE_NAME = "config_config"
"""Module name given to every config file. It is part of the class paths, and so of the fingerprints, of a config's own
settings classes."""
PACKAGED = Path(__file__).parent / "studies"
"""Folder of the package's own studies, which are loaded by name."""
LONGEST_MESSAGE, LONGEST_LINE = 300, 120


MOVED = {
    f"tll_jax.evaluation.{name}": f"tll_jax.systems.{name}"
    for name in (
        *("adapter", "bag_of_words", "baselines", "ensemble", "frozen_features"),
        *("local_features", "lpips", "metric_learning", "mirrored"),
    )
} | {f"tll_jax.{room}.local_scaling": "tll_jax.systems.csls" for room in ("evaluation", "systems")}
MOVED["tll_jax.contracts"] = "tll_jax.typing"
"""Modules by the names that config files written for 0.1.0 import them by."""


class _FormerPlaces(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An import hook for `sys.meta_path` that finds moved modules under their former names, with a warning."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        present = importlib.import_module(MOVED[module.__name__])
        warn_of_old_name(module.__name__.rpartition(".")[2], MOVED[module.__name__], module.__name__.rpartition(".")[0])
        names = ("__getattr__", *(name for name in vars(present) if not name.startswith("__")))
        module.__dict__.update({name: vars(present)[name] for name in names if name in vars(present)})


@contextmanager
def former_places() -> Iterator[None]:
    """Makes moved modules importable under their former names within the block."""
    finder = _FormerPlaces()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def _modules_beside(path: Path) -> Iterator[None]:
    """Makes modules beside a config importable within the block, after all others, so that they hide none."""
    folder = str(path.absolute().parent)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def load_study(name: str) -> Study:
    """Loads the study of a config file. Settings objects are copied so that none is shared between two fields.

    Args:
      name: "configs/X.py" or "configs/X.py:argument", or the name of a study of the package, such as "emoji".

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file does not parse, fails, or builds no study; the message names the line.
    """
    path, argument = _parts(name)
    with former_places(), _modules_beside(path):
        return _load_study(path, argument)


def _load_study(path: Path, argument: str) -> Study:
    module = _load(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise InvalidValue(
            f"config is {str(path)!r}, which has no function get_config(); write one that returns a Study"
        )
    arguments = [argument] if argument else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        mend = f"no argument; leave out :{argument}" if argument else f"an argument; write {path}:ARGUMENT"
        raise InvalidValue(f"get_config() of {path} takes {mend}") from error
    try:
        study = get_config(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise InvalidValue(_with_line(error, path)) from error
    if not isinstance(study, Study):
        forgot = ": is its return missing?" if study is None else ""
        raise InvalidValue(f"get_config() of {path} returns {shown(study)}; it must return a tll_jax.Study{forgot}")
    return separate(study)


def _parts(name: str) -> tuple[Path, str]:
    """The file and the argument after its colon, or an empty string."""
    whole = given_path(name)
    if whole.is_file():
        return whole, ""
    file_name, _, argument = name.partition(":")
    path = given_path(file_name)
    if path.is_dir():
        raise MissingFile(f"config is {str(path)!r}, a folder; name a file in it, such as {path / 'X.py'}")
    if not path.is_file():
        studies = {found.stem: found for found in PACKAGED.glob("[a-z]*.py")}
        if file_name in studies:
            return studies[file_name], argument
        raise MissingFile(
            f"config is {str(path)!r}, where there is no file; the package itself has {', '.join(sorted(studies))}"
        )
    return path, argument


def _load(path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(MODULE_NAME, str(path))
    spec = importlib.util.spec_from_loader(MODULE_NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the module that defines them in sys.modules.
    sys.modules[MODULE_NAME] = module
    # Worker processes cannot import this module, so its classes are pickled by value.
    cloudpickle.register_pickle_by_value(module)
    try:
        loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise InvalidValue(_with_line(error, path)) from error
    return module


def _with_line(error: Exception, path: Path) -> str:
    """The error with the last line of its traceback that is in the user's own files."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        file, number, line, message = error.filename, error.lineno, error.text, error.msg
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename, path)]
        last = frames[-1] if frames else traceback.FrameSummary(str(path), None, "", line="")
        # Python 3.13 suggests one of the keywords itself.
        message = re.sub(r"\. Did you mean '\w+'\?$", "", " ".join(str(error).split()))
        file, number, line = last.filename, last.lineno, last.line
    where = f"{file}, line {number}" if number else file
    code = f" ({line.strip()[:LONGEST_LINE]})" if line and line.strip() else ""
    return f"{where}{code}: {type(error).__name__}: {message[:LONGEST_MESSAGE]}{_suggestion(error)}"


def _suggestion(error: Exception) -> str:
    """Suggestions for an unknown keyword or import, with all keywords that exist; empty for other errors."""
    if isinstance(error, ImportError) and (
        missing := re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
    ):
        near = difflib.get_close_matches(missing[1], dir(sys.modules.get(missing[2])), n=1)
        return f"; perhaps {near[0]}" if near else ""
    unknown = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or unknown is None:
        return ""
    places = {frame.f_globals.get(unknown[1]) for frame, _ in traceback.walk_tb(error.__traceback__)}
    fields = [field.name for place in places if dataclasses.is_dataclass(place) for field in dataclasses.fields(place)]
    near = difflib.get_close_matches(unknown[2], fields, n=1)
    return (f"; perhaps {near[0]}" if near else "") + (f"; it has {', '.join(fields)}" if fields else "")


def _is_own(file: str, config_path: Path) -> bool:
    """Whether a file is the user's: the config itself, or neither in this package nor in an installed one."""
    if Path(file) == config_path:
        return True
    installed = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    others = [*installed, *tll_jax.__path__]
    return not file.startswith("<") and not any(Path(file).is_relative_to(folder) for folder in others)


def set_fields(study: Study, fields: Sequence[tuple[str, str | None]]) -> None:
    """Sets fields of the study by dotted paths, in order, such as ("models.barlow.pretrain.seed", "1").

    Args:
      fields: paths and values as text; None sets a bool to True.

    Raises:
      KeyError: a field or name that is not there.
      ValueError: a value that does not fit its field; a field that is set twice.
    """
    for number, (path, _) in enumerate(fields):
        for other, _ in fields[:number]:
            if (other + ".").startswith(path + "."):
                raise InvalidValue(f"--config.{path} would overwrite --config.{other}; leave out one of the two")
    for path, text in fields:
        _set_field(study, path, text)


def _set_field(study: Study, path: str, text: str | None) -> None:
    # models["lite0-full"].head is models.lite0-full.head.
    *parents, name = re.sub(r"\[['\"]?([^'\"\]]*)['\"]?\]", r".\1", path).split(".")
    holder: Any = study
    annotation: Any = Study
    where = "config"
    for part in parents:
        part = _present_name(holder, part, where)
        holder, annotation = _step(holder, annotation, part, where)
        where = f"{where}.{part}"
    name = _present_name(holder, name, where)
    value, annotation = _step(holder, annotation, name, where)
    where = f"{where}.{name}"
    if type(None) in kinds(annotation) and text in ("None", "none"):
        new = None
    elif not can_be_read(annotation) or isinstance(holder, tuple | list):
        raise InvalidValue(f"{where} is {_kind(value)}, which a command line cannot give; {_ways_to_set(value)}")
    elif text is None and bool not in kinds(annotation):
        raise InvalidValue(f"--config.{path} has no value; write --config.{path}=VALUE, {allowed(annotation)}")
    else:
        new = read("true" if text is None else text, annotation)
    if not fits(new, annotation):
        raise InvalidValue(f"{where} is {shown(new)}; it must be {allowed(annotation)}")
    if isinstance(holder, dict):
        holder[name] = new
    else:
        _assign(holder, name, new, where)


def _present_name(holder: Any, name: str, where: str) -> str:
    """The present name of a field or system that may be given by its former one."""
    renamed = first_names(holder)
    if isinstance(holder, Mapping) and name not in holder:
        renamed = {former: present for former, present in PRESENT_SYSTEMS.items() if present in holder}
    present = renamed.get(name, name)
    if present != name:
        warn_of_old_name(name, present, where)
    return present


def _assign(holder: Any, name: str, value: Any, where: str) -> None:
    try:
        setattr(holder, name, value)
    except dataclasses.FrozenInstanceError as error:
        raise InvalidValue(f"{where} is a field of a frozen dataclass; set it in the config file") from error


def _step(holder: Any, annotation: Any, part: str, where: str) -> tuple[Any, Any]:
    """The value and the annotation of the field `part` of `holder`."""
    if isinstance(holder, Mapping):
        found, annotations = dict(holder), dict.fromkeys(holder, entry_annotation(annotation) or Any)
    elif isinstance(holder, tuple | list):
        found, annotations = {str(place): child for place, child in enumerate(holder)}, {}
    else:
        annotations = field_annotations(holder)
        found = {name: getattr(holder, name) for name in annotations}
    if part in found:
        return found[part], annotations.get(part, Any)
    if not found:
        raise UnknownName(f"{where} is {shown(holder)}, which has no {part!r}: it has no fields")
    near = difflib.get_close_matches(part, found, n=1)
    meant = f", perhaps {near[0]}" if near else ""
    raise UnknownName(f"{where} has no {part!r}{meant}; it has {', '.join(found)}")


def _kind(value: Any) -> str:
    return shown(value) if not dataclasses.is_dataclass(value) else with_article(type(value).__name__)


def _ways_to_set(value: Any) -> str:
    fields = field_annotations(value)
    return f"set its fields: {', '.join(fields)}" if fields else "write it in the config file"
