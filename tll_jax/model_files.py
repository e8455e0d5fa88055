"""Model files: a network's settings and fitted numbers in one .safetensors file, read without JAX.

A file holds the tensors of a head, and of the backbone where that was trained here; a pretrained backbone is named by
its weights, which come from a package, and by the hash of what they hold. The metadata entry "tll_jax" is JSON:
settings of the network and of how pictures reach it, and where the numbers come from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tll_jax.cache import cache_folder
from tll_jax.errors import DamagedFile, InvalidValue, MissingFile, missing_package
from tll_jax.files import write_whole

if TYPE_CHECKING:
    # Parsing a command line shall not wait for it.
    import numpy as np

FORMAT = "tll-model/1"
SUFFIX = ".safetensors"
DEFAULT = "default"
"""Name of the default model, in place of a path; see `model_path`."""
SHIPPED = Path(__file__).parent / "models" / "look_alike.safetensors"
"""The model file in the package."""
PICTURES = "pictures"
"""Name of the tensor of content hashes of training pictures, uint8 `[pictures, 32]`."""
PERCEPTUAL = "perceptual"
"""Name of the tensor of their perceptual hashes, uint8 `[pictures, 16]`, zeros where unknown; absent if all are."""
OF_PICTURES = (PICTURES, PERCEPTUAL)
"""Names of the tensors that are not part of the network."""
_ENTRY = "tll_jax"


def look_alike_path() -> Path:
    """The path in the cache folder of the model that `make look-alike` fits on Totally Looks Like."""
    return cache_folder() / "models" / "look_alike_tll.safetensors"


def model_path(model: str | Path) -> Path:
    """The path of a model; "default" is the file in the cache folder, or else the one in the package."""
    if str(model) != DEFAULT or Path(model).exists():
        return Path(model)
    return next((path for path in (look_alike_path(), SHIPPED) if path.is_file()), SHIPPED)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The content of a model file."""

    path: Path
    network: Mapping[str, Any]
    """JSON of the settings: "backbone", "head", "geometry", "batch_size" and, for a pretrained backbone, "weights" and
    "weights_sha256", the hash of the weight file's content."""
    provenance: Mapping[str, Any]
    """JSON: "package_version", "study", "system", "settings", "pairs", "counts", "license" and others."""
    tensors: "Mapping[str, np.ndarray]"
    """Parameters of the network by their paths, such as "params/head/kernel", and the tensors `OF_PICTURES`."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of settings and parameters, 32 hexadecimal digits; equal where embeddings are equal, whatever the
        provenance."""
        parts = {name: value for name, value in self.network.items() if name != "batch_size"}
        digest = hashlib.blake2b(json.dumps([FORMAT, parts], sort_keys=True).encode(), digest_size=16)
        for name, values in sorted(self.tensors.items()):
            if name not in OF_PICTURES:
                digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
                digest.update(values.tobytes())
        return digest.hexdigest()

    @property
    def pictures(self) -> list[str]:
        """Content hashes of the training and validation pictures."""
        return [row.tobytes().hex() for row in self.tensors.get(PICTURES, ())]

    @property
    def perceptual(self) -> list[str]:
        """Perceptual hashes of the training and validation pictures, as far as known."""
        return [row.tobytes().hex() for row in self.tensors.get(PERCEPTUAL, ()) if row.any()]


def is_model_file(path: Path) -> bool:
    """Whether a path names a model file rather than a run folder."""
    return path.suffix == SUFFIX and not path.is_dir()


def read_model_file(path: Path) -> ModelFile:
    """Reads a model file whole.

    Raises:
      MissingFile: there is no such file.
      MissingPackage: `tll_jax[find]` is not installed.
      DamagedFile: it is truncated, or no .safetensors file.
      InvalidValue: it is not a file of tll_jax, or of a later version.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_package("reading a model file", "find") from error
    if not path.is_file():
        raise MissingFile(f"there is no model file {path}: tll fit RUN --out FILE{SUFFIX} writes one")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            # Other files, which are refused below, may be large.
            names = file.keys() if _ENTRY in metadata else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError) as error:
        raise DamagedFile(f"{path} cannot be read as a model file, it may be truncated: {error}") from error
    try:
        found = json.loads(metadata[_ENTRY])
        version, network, provenance = (found[name] for name in ("format", "network", "provenance"))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidValue(
            f"{path} is not a model file of tll_jax: tll fit RUN --out FILE{SUFFIX} writes one"
        ) from error
    if version != FORMAT:
        raise InvalidValue(f"{path} is a model file of the format {version!r}; this version reads {FORMAT!r}")
    return ModelFile(path=path, network=network, provenance=provenance, tensors=tensors)


def write_model_file(
    path: Path,
    *,
    network: Mapping[str, Any],
    provenance: Mapping[str, Any],
    tensors: "Mapping[str, np.ndarray]",
    pictures: Mapping[str, str],
) -> ModelFile:
    """Writes a model file atomically.

    Args:
      network, provenance, tensors: see `ModelFile`.
      pictures: perceptual hashes by content hashes, both hexadecimal; empty where unknown.

    Raises:
      InvalidValue: the path does not end in .safetensors.
      MissingPackage: `tll_jax[find]` is not installed.
    """
    if path.suffix != SUFFIX:
        raise InvalidValue(f"the model file is {path}; its name must end in {SUFFIX}")
    import numpy as np

    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise missing_package("writing a model file", "find") from error
    rows = [np.frombuffer(bytes.fromhex(content), np.uint8) for content in sorted(pictures)]
    looked_at = [bytes.fromhex(pictures[content] or "00" * 16) for content in sorted(pictures)]
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    tensors |= {PICTURES: np.stack(rows) if rows else np.zeros((0, 32), np.uint8)}
    if any(pictures.values()):
        tensors |= {PERCEPTUAL: np.stack([np.frombuffer(one, np.uint8) for one in looked_at])}
    # One entry, because the order of several would change from run to run.
    found = {"format": FORMAT, "network": network, "provenance": provenance}
    write_whole(path, save(tensors, metadata={_ENTRY: json.dumps(found, sort_keys=True)}))
    return ModelFile(path=path, network=network, provenance=provenance, tensors=tensors)
