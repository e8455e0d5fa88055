"""Weight files of PyTorch users, read without PyTorch and without running anything that a file holds.

A .pth file is a pickle beside raw numbers, and unpickling calls whatever the pickle names. Here it may name the few
things that tensors and NumPy arrays are made of, which are replaced by functions of this module; any other name is
refused.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from tll_jax.errors import InvalidValue, MissingFile, MissingPackage

DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LEGACY_START = b"\x80\x02\x8a\x0a"
"""How a file begins that PyTorch before 1.6 has written: its magic number, pickled."""

PICKLE_START = b"\x80"
"""How every pickle of a protocol above 1 begins."""

WRAPPERS = ("model", "state_dict")
"""Entries of a training checkpoint under which the state dict lies."""


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A tensor of which the numbers have not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _ArrayType:
    """The dtype of a pickled NumPy array: its kind and size, "f4", then its byte order."""

    def __init__(self, kind: str) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", kind):
            raise InvalidValue(f"it holds an array of type {kind!r}; numbers are needed")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A pickled NumPy array, which a pickle first makes and then fills."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_column_major, data = state
        flat = np.frombuffer(data, kind.dtype)
        self.value = flat.reshape(shape, order="F" if is_column_major else "C").copy()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Bound methods and dtypes, because a pickle can set attributes of whatever it is given.
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        allowed = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "numpy.core.multiarray._reconstruct": self._array,
            "numpy._core.multiarray._reconstruct": self._array,
            "numpy.dtype": self._array_type,
            "numpy.ndarray": "ndarray",
        }
        if f"{module}.{name}" not in allowed:
            raise InvalidValue(
                f"it names {module}.{name}, which is no part of a tensor and is not run; "
                "save the state dict alone, or as .safetensors"
            )
        return allowed[f"{module}.{name}"]

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, _, size = identity[:5]
        is_view = len(identity) > 5 and identity[5] is not None
        if kind != "storage" or is_view or not isinstance(dtype, np.dtype) or not isinstance(size, int) or size < 0:
            raise InvalidValue("it holds numbers in a way that PyTorch's state dicts do not")
        return _Storage(str(key), dtype, size)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(isinstance(one, int) and one >= 0 for one in numbers):
            raise InvalidValue("it holds a tensor without numbers, or of negative size")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        count = int(np.prod(shape, dtype=object))
        # The second: a stride of 0 makes a huge tensor of one number.
        if count and (last >= storage.size or count > storage.size):
            raise InvalidValue(
                f"it holds a tensor of shape {tuple(shape)} that reaches past its {storage.size} numbers"
            )
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor

    def _array(self, *_: Any) -> _Array:
        return _Array()

    def _array_type(self, kind: str, *_: Any) -> _ArrayType:
        return _ArrayType(kind)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a state dict, by its name, from a .safetensors file or from what `torch.save` wrote (.pth, .pt).

    A training checkpoint's "model" or "state_dict" is taken; "module.", which data-parallel training puts before
    every name, is taken off. A pickle of nested mappings of NumPy arrays, as Flax users have them (.ckpt), is read
    too; its names are joined by dots. Nothing that the file names is run.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: a .safetensors file where `tll_jax[weights]` is not installed.
      ValueError: the file is truncated, names what is no part of a tensor, or holds no tensors.
    """
    if not path.is_file():
        raise MissingFile(f"{path} is not there, or not a file; it should hold weights, .pth or .safetensors")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = {}
    if isinstance(found, Mapping):
        tensors = {str(name): value for name, value in found.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise InvalidValue(f"{path} holds no tensors by name; a state dict is needed, as model.state_dict() gives it")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise MissingPackage(f"{path} needs the package safetensors: pip install 'tll_jax[weights]'") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidValue(f"{path} cannot be read as safetensors, it may be truncated: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_START))
            file.seek(0)
            if start == LEGACY_START:
                return _read_legacy(file)
            if start[:1] == PICKLE_START:
                return dict(_joined(_filled(_Unpickler(file).load(), _no_numbers)))
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive)
    except zipfile.BadZipFile as error:
        raise InvalidValue(f"{path} is no weight file of PyTorch, or is truncated: {error}") from error
    # A damaged or malicious pickle can end in nearly any exception.
    except Exception as error:
        raise InvalidValue(
            f"{path} cannot be read as a weight file of PyTorch: {error or type(error).__name__}"
        ) from error


def _read_zip(archive: zipfile.ZipFile) -> Any:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise InvalidValue("it is a zip without the one data.pkl that torch.save writes")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise InvalidValue("its numbers are big-endian; save it again on a usual machine")
    with archive.open(names[0]) as file:
        tree = _Unpickler(file).load()

    def numbers(storage: _Storage) -> bytes:
        entry = archive.getinfo(f"{folder}data/{storage.key}")
        if entry.file_size != storage.size * storage.dtype.itemsize:
            raise InvalidValue(f"its numbers {storage.key!r} are {entry.file_size} bytes, not those of {storage.size}")
        return archive.read(entry)

    return _filled(tree, numbers)


def _read_legacy(file: BinaryIO) -> Any:
    magic, protocol, system = (_Unpickler(file).load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not system["little_endian"]:
        raise InvalidValue("its header is not that of a little-endian file of PyTorch")
    tree = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    starts = {}
    sizes = {storage.key: storage for storage in _storages(tree)}
    for key in keys:
        storage = sizes[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.size:
            raise InvalidValue(f"its numbers {key!r} are {count}, where {storage.size} were announced")
        starts[key] = file.tell()
        file.seek(count * storage.dtype.itemsize, 1)

    def numbers(storage: _Storage) -> bytes:
        file.seek(starts[storage.key])
        size = storage.size * storage.dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise InvalidValue("it is truncated")
        return data

    return _filled(tree, numbers)


def _no_numbers(storage: _Storage) -> bytes:
    raise InvalidValue(f"it is a pickle without the numbers {storage.key!r} that it speaks of")


def _joined(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays of nested mappings, each under the names on the way to it, joined by dots."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from _joined(child, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, np.ndarray):
        yield name, tree


def _storages(tree: Any) -> list[_Storage]:
    if isinstance(tree, _Tensor):
        return [tree.storage]
    children = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return [storage for child in children for storage in _storages(child)]


def _filled(tree: Any, numbers: Any) -> Any:
    """The tree with arrays for its tensors."""
    if isinstance(tree, _Tensor):
        storage = tree.storage
        flat = np.frombuffer(numbers(storage), storage.dtype)
        strides = [stride * storage.dtype.itemsize for stride in tree.strides]
        return np.ndarray(tree.shape, storage.dtype, flat, tree.offset * storage.dtype.itemsize, strides).copy()
    if isinstance(tree, _Array):
        return tree.value
    if isinstance(tree, Mapping):
        return {key: _filled(value, numbers) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_filled(value, numbers) for value in tree]
    return tree
