"""Reading of PyTorch weight files without PyTorch and without running code from a file.

A .pth file is a pickle with raw data, and unpickling calls any function that the pickle refers to. Here only the few
names that make up tensors and NumPy arrays are allowed, and they are replaced by functions of this module. The memory
that unpickling would need is bounded beforehand from the opcodes, because a few bytes can request any amount: by memo
indices, by containers that contain each other many times, and by compressed data.
"""

import io
import json
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from tll_jax.errors import FileProblem, InvalidValue, MissingFile, missing_package

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
"""First bytes of files written by PyTorch before 1.6: its pickled magic number."""

PICKLE_START = b"\x80"
"""First byte of every pickle with a protocol above 1."""

MAX_PICKLE = 2**26
"""Largest pickle in bytes, without the raw data; that of a network with a thousand layers has about a megabyte."""
MAX_NODES = 10**6
"""Largest number of values in a pickle; a value in two containers counts twice."""
MAX_UNPACKED = 4
"""Largest ratio of the data's unpacked size to the file's; PyTorch does not compress, and weights hardly shrink."""
MAX_SIDE = 2**62

SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL")
READ_TYPES = "which is not read; save it as float32, float16 or bfloat16"

WRAPPERS = ("model", "state_dict", "teacher")
"""Keys of a training checkpoint with the state dict."""

FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""Weight files looked for in a folder; the first that exists is read."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
INDEX = ".index.json"
"""Suffix of the file that maps tensors to shards."""


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A tensor whose data has not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _ArrayType:
    """Dtype of a pickled NumPy array: kind and size, such as "f4", then the byte order."""

    def __init__(self, kind: str) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", kind):
            raise InvalidValue(f"it holds an array of type {kind!r}; numbers are needed")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A pickled NumPy array, which is created empty and then filled."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_column_major, data = state
        flat = np.frombuffer(data, kind.dtype)
        self.value = flat.reshape(shape, order="F" if is_column_major else "C")


class _Scripted:
    """A TorchScript module, of which only the attributes are read, not the code."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Only bound methods and dtypes, whose attributes cannot be set: a pickle can set those of any other object.
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.split(".")[0] == "__torch__":
            return _Scripted
        allowed = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            # For dtypes without a storage class; the pickle names the dtype next, and it is refused then.
            "torch._utils._rebuild_tensor_v3": self._tensor,
            "torch.storage.UntypedStorage": np.dtype("u1"),
            "torch._utils._rebuild_parameter": self._parameter,
            "numpy.core.multiarray._reconstruct": self._array,
            "numpy._core.multiarray._reconstruct": self._array,
            "numpy.dtype": self._array_type,
            "numpy.ndarray": "ndarray",
        }
        if module == "torch" and re.fullmatch(r"\w+Storage|b?float\d\w*|u?int\d+|complex\d+|q\w*int\d\w*", name):
            raise InvalidValue(f"it holds numbers of the type {name}, {READ_TYPES}")
        if f"{module}.{name}" not in allowed:
            raise InvalidValue(
                f"it names {module}.{name}, which is no part of a tensor and is not run; "
                "save the state dict alone, or as .safetensors"
            )
        return allowed[f"{module}.{name}"]

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, _, size = identity[:5]
        is_view = len(identity) > 5 and identity[5] is not None
        is_named = isinstance(key, str | int) and len(str(key)) < 100
        if kind != "storage" or is_view or not is_named or not isinstance(dtype, np.dtype) or not _is_size(size):
            raise InvalidValue("it holds numbers in a way that PyTorch's state dicts do not")
        return _Storage(str(key), dtype, size)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or len(shape) > 64 or not all(map(_is_size, (offset, *shape, *strides))):
            raise InvalidValue("it holds a tensor without numbers, or of negative size")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        count = int(np.prod(shape, dtype=object))
        # The second condition: a stride of 0 makes a huge tensor of one number.
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


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and 0 <= number < MAX_SIDE


def _unpickle(file: BinaryIO) -> Any:
    """Unpickle the next pickle of a file, after a check that it needs no more memory than its bytes justify."""
    start = file.tell()
    _check_size(file)
    end = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start))).load()


def _check_size(file: BinaryIO) -> None:
    """Count the values in each object of a pickle from its opcodes, without building any; raise if there are too many.

    An object is represented by a list with its count, so that growth of a container is seen through all references.
    """
    bounded: Any = _Bounded(file)
    stack: list[Any] = []
    memo: dict[int, list[int]] = {}
    for num_operations, (operation, argument, _) in enumerate(pickletools.genops(bounded)):
        name, before, after = operation.name, operation.stack_before, operation.stack_after
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if argument is None else int(argument)
            # Unpickling allocates all memo entries up to this one.
            if place > num_operations:
                raise InvalidValue(f"it puts its value number {num_operations} in place {place} of its memo")
            memo[place] = stack[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
            continue
        num_taken = len(before)
        taken = []
        if pickletools.markobject in before or (name == "POP" and stack[-1] is None):
            while (value := stack.pop()) is not None:
                taken.append(value)
            num_taken = before.index(pickletools.markobject) if pickletools.markobject in before else 0
        if num_taken:
            taken += reversed(stack[-num_taken:])
            del stack[-num_taken:]
        # The container, which is modified in place, is the deepest operand.
        holder = taken.pop() if name in _GROW else [1]
        holder[0] += sum(value[0] for value in taken)
        if max(holder[0], num_operations // 4) > MAX_NODES:
            raise InvalidValue(f"it holds more than {MAX_NODES:,} values")
        if name == "DUP":
            stack += [taken[0], taken[0]]
        else:
            stack += [None if one is pickletools.markobject else holder for one in after]


_GROW = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


class _Bounded:
    """File wrapper that reads at most the remaining bytes, because a read allocates the requested size first."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.readline = file.tell, file.readline
        self._file = file
        self._end = _size(file)

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, max(0, self._end - self._file.tell())))


def _size(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end


def find_weights(path: Path) -> Path:
    """Find the weight file, or the index of shards, in a folder; a path that is no folder is returned unchanged.

    Raises:
      FileNotFoundError: the folder has no weight file.
      InvalidValue: the folder has several weight files, none with a usual name.
    """
    if not path.is_dir():
        return path
    files = weight_files_in(path)
    if not files:
        raise MissingFile(f"the folder {path} holds no weights; it should hold {', '.join(FILES)}, or one other file")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3])
        raise InvalidValue(f"the folder {path} holds {len(files)} files of weights, {names}: name one of them")
    return files[0]


def weight_files_in(folder: Path) -> list[Path]:
    """Files that may be the weights of a folder: one of a usual name alone, or else all others, in order."""
    usual = [folder / name for name in FILES if (folder / name).is_file()]
    return usual[:1] or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())


def shards_of(path: Path) -> list[Path]:
    """Files with the tensors: all shards of an index, else the file itself.

    Raises:
      InvalidValue: the index is damaged, or names files outside its folder.
    """
    if not path.name.endswith(INDEX):
        return [path]
    if not path.is_file():
        raise MissingFile(f"{path} is not there, or not a file")
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        plain = all(name == Path(name).name and Path(name).suffix in SUFFIXES for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidValue(f"{path} cannot be read as an index of shards: it has no weight_map of names") from error
    if not names or not plain:
        raise InvalidValue(
            f"{path} must name weight files in its own folder, and names {', '.join(names[:3]) or 'none'}"
        )
    return [path.with_name(name) for name in names]


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a state dict, by name.

    The file is a .safetensors file, a file of `torch.save` or `torch.jit.save` (.pth, .pt, .bin), or an index of
    shards. In a training checkpoint, the entry "model", "state_dict" or "teacher" is read; the prefix "module." of
    data-parallel training is removed. Pickles of nested mappings of NumPy arrays, as written by Flax users (.ckpt), are
    read too, with names joined by dots. No code from the file is run, and memory is limited to a few times the file's
    size. The arrays may share memory and are read-only.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: the file cannot be read.
      ImportError: it is a .safetensors file and `tll_jax[weights]` is not installed.
      ValueError: the file is truncated, refers to anything but tensors, has no tensors or unsupported dtypes, or would
        unpack to far more than its size.
    """
    shards = shards_of(path)
    if shards != [path]:
        return {name: value for shard in shards for name, value in read_state_dict(shard).items()}
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
        raise missing_package(f"reading {path}", "weights") from error
    _check_types(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidValue(f"{path} cannot be read as safetensors, it may be truncated: {error}") from error


def safetensors_header(path: Path) -> Mapping[str, Any]:
    """Header of a .safetensors file, by names of tensors and "__metadata__"; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if length <= min(_size(file), MAX_PICKLE) else b"")
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, Mapping) else {}


def _check_types(path: Path) -> None:
    """Raise for unsupported dtypes; other errors of the header are reported by the safetensors package."""
    for name, fields in safetensors_header(path).items():
        kind = fields.get("dtype", "F32") if name != "__metadata__" and isinstance(fields, Mapping) else "F32"
        if kind not in SAFETENSORS_TYPES:
            raise InvalidValue(f"{path} holds {name!r} of the type {kind}, {READ_TYPES}")


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_START))
            file.seek(0)
            if start == LEGACY_START:
                return _read_legacy(file)
            if start[:1] == PICKLE_START:
                return dict(_joined(_filled(_unpickle(file), _no_numbers)))
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive, path.stat().st_size)
    except zipfile.BadZipFile as error:
        raise InvalidValue(f"{path} is no weight file of PyTorch, or is truncated: {error}") from error
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror or error}): look after the file") from error
    except MemoryError:
        raise
    # A damaged or malicious pickle can raise nearly any exception.
    except Exception as error:
        reason = (str(error) or type(error).__name__)[:300]
        raise InvalidValue(f"{path} cannot be read as a weight file of PyTorch: {reason}") from error


def _read_zip(archive: zipfile.ZipFile, file_size: int) -> Any:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise InvalidValue("it is a zip without the one data.pkl that torch.save writes")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and _unpack(archive, f"{folder}byteorder", 16) != b"little":
        raise InvalidValue("its numbers are big-endian; save it again on a usual machine")
    tree = _unpickle(io.BytesIO(_unpack(archive, names[0], MAX_PICKLE)))
    room = MAX_UNPACKED * file_size

    def numbers(storage: _Storage) -> bytes:
        nonlocal room
        entry = archive.getinfo(f"{folder}data/{storage.key}")
        if entry.file_size != storage.size * storage.dtype.itemsize:
            raise InvalidValue(f"its numbers {storage.key!r} are {entry.file_size} bytes, not those of {storage.size}")
        data = _unpack(archive, entry.filename, room)
        room -= len(data)
        return data

    filled = _filled(tree, numbers)
    return dict(_joined(filled)) if isinstance(tree, _Scripted) else filled


def _unpack(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Unpack a file of the zip, up to the size that the zip states."""
    entry = archive.getinfo(name)
    if entry.file_size > max_bytes:
        raise InvalidValue(f"its {name} unpacks to {entry.file_size:,} bytes, where {max_bytes:,} are allowed")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidValue(f"its {name} is packed in a way that torch.save does not: save it again")
    with archive.open(entry) as file:
        return file.read(entry.file_size + 1)


def _read_legacy(file: BinaryIO) -> Any:
    magic, protocol, system = (_unpickle(file) for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not system["little_endian"]:
        raise InvalidValue("its header is not that of a little-endian file of PyTorch")
    tree = _unpickle(file)
    keys = _unpickle(file)
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
        if starts[storage.key] + size > _size(file):
            raise InvalidValue("it is truncated")
        return file.read(size)

    return _filled(tree, numbers)


def _no_numbers(storage: _Storage) -> bytes:
    raise InvalidValue(f"it is a pickle without the numbers {storage.key!r} that it speaks of")


def _joined(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays of nested mappings, with the names on their path joined by dots."""
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


def _filled(tree: Any, numbers: Callable[[_Storage], bytes]) -> Any:
    """The tree with arrays in place of tensors; tensors of one storage share its data, which is read once."""
    flat: dict[_Storage, np.ndarray] = {}

    def fill(node: Any) -> Any:
        if isinstance(node, _Tensor):
            storage = node.storage
            if storage not in flat:
                flat[storage] = np.frombuffer(numbers(storage), storage.dtype)
            strides = [stride * storage.dtype.itemsize for stride in node.strides]
            start = node.offset * storage.dtype.itemsize
            return np.ndarray(node.shape, storage.dtype, flat[storage], start, strides)
        if isinstance(node, _Array):
            return node.value
        if isinstance(node, _Scripted):
            return fill(node.attributes)
        if isinstance(node, Mapping):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [fill(value) for value in node]
        return node

    return fill(tree)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a state dict, from .safetensors without reading the data.

    Raises:
      FileNotFoundError, OSError, ImportError, ValueError: as `read_state_dict`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards_of(path):
        if shard.suffix == ".safetensors":
            try:
                from safetensors import SafetensorError, safe_open
            except ImportError as error:
                raise missing_package(f"reading {shard}", "weights") from error
            if not shard.is_file():
                raise MissingFile(f"{shard} is not there, or not a file; it should hold weights")
            _check_types(shard)
            try:
                with safe_open(shard, "numpy") as file:
                    shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise InvalidValue(f"{shard} cannot be read as safetensors, it may be truncated: {error}") from error
        else:
            shapes |= {name: value.shape for name, value in read_state_dict(shard).items()}
    return shapes
