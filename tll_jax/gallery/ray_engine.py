"""Embedding on Ray: actors on any number of machines embed chunks of files, and the process that started them commits.

Pictures and models are read by their paths, which have to be the same on all machines.
"""

import logging
import os
import pickle
from collections.abc import Collection, Generator, Sequence
from typing import Any

from tll_jax import devices
from tll_jax.data.imaging import quiet_opencv
from tll_jax.errors import InvalidValue, UserError, missing_package
from tll_jax.gallery.arrow import pa
from tll_jax.gallery.embed import CHUNK, Chunk, Embedding, Index, file_id, in_threads
from tll_jax.gallery.scan import File, Root, Scan
from tll_jax.gallery.store import FILES, contents_schema
from tll_jax.gallery.stored import load_embedding


class RayEngine:
    """An `Engine` of Ray Data: on the cluster that RAY_ADDRESS names, else on this machine.

    Args:
      processes: the number of actors; by default one a GPU, or without GPUs one a machine, as JAX uses all its cores.

    Raises:
      MissingPackage: `tll_jax[ray]` is not installed.
    """

    def __init__(self, processes: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise missing_package("--engine=ray", "ray") from error
        self.processes = processes

    def __call__(
        self, index: Index, model: Embedding, known: set[str], named: Collection[str], new: Sequence[File], /
    ) -> Generator[Chunk, None, None]:
        """Chunks in the order in which they are done. Two actors may embed the same new content; one row of it stays.

        Raises:
          UserError: no cluster can be reached.
        """
        import ray.data

        is_ours = not ray.is_initialized()
        if is_ours:
            _start()
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            num_gpus = int(ray.cluster_resources().get("GPU", 0))
            machines = sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes())
            name = os.path.abspath(model.name) if os.path.exists(model.name) else model.name
            tasks = [_task(index.scanned, new[start : start + CHUNK], named) for start in range(0, len(new), CHUNK)]
            done = ray.data.from_arrow(tasks).map_batches(
                Actor,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=self.processes or num_gpus or max(machines, 1)),
                num_gpus=1 if num_gpus else None,
                fn_constructor_args=(name, str(model.fingerprint), model.dim, index.scanned.roots, ray.put(known)),
            )
            blocks: Any = done.iter_batches(batch_size=None, batch_format="pyarrow")
            for block in blocks:
                for row in block.to_batches(max_chunksize=1):
                    part, num_files, problem = pickle.loads(row["outcome"][0].as_py())
                    _add(part, index, known)
                    yield Chunk(num_files, _rows(row["contents"]), _rows(row["files"]), problem)
        finally:
            if is_ours:
                ray.shutdown()


def _start() -> None:
    import ray

    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {error}") from error


def _task(scanned: Scan, files: Sequence[File], named: Collection[str]) -> pa.Table:
    """A chunk's files, and the ids of those that have a row, as a block of one row."""
    ids = {file_id(scanned.roots[file.root].path, file.path) for file in files}
    return pa.table({"files": [pickle.dumps((files, {one for one in ids if one in named}))]})


def _add(part: Index, index: Index, known: set[str]) -> None:
    index.contents.update(part.contents)
    index.broken.update(part.broken)
    for name in ("kept", "embedded", "renamed"):
        setattr(index, name, getattr(index, name) + getattr(part, name))
    new = set(part.contents.values()) - known
    known |= new
    index.num_decoded += len(new)


class Actor:
    """Holds the compiled embedder of one process."""

    def __init__(self, name: str, fingerprint: str, dim: int, roots: tuple[Root, ...], known: Any) -> None:
        import ray

        self.name, self.fingerprint, self.dim, self.roots = name, fingerprint, dim, roots
        self.known: set[str] = ray.get(known)
        self.model: Embedding | None = None

    def __call__(self, task: pa.Table) -> pa.Table:
        """The rows of a chunk, and its part of the index with the error that ends the run."""
        files, named = pickle.loads(task["files"][0].as_py())
        index = Index(scanned=Scan(roots=self.roots))
        try:
            (chunk,) = in_threads(index, self._load(), self.known, named, files)
        except UserError as error:
            chunk = Chunk(0, contents_schema(self.dim).empty_table(), FILES.empty_table(), error)
        outcome = pickle.dumps((index, chunk.num_files, chunk.problem))
        return pa.table({"contents": _one(chunk.contents), "files": _one(chunk.files), "outcome": [outcome]})

    def _load(self) -> Embedding:
        if self.model is None:
            quiet_opencv()
            devices.keep_compiled_programs()
            _, model = load_embedding(self.name)
            if model.fingerprint != self.fingerprint:
                raise InvalidValue(f"{self.name} is another model on {os.uname().nodename}: copy it to all machines")
            self.model = model
        return self.model


def _one(table: pa.Table) -> pa.ListArray:
    """A table as one value."""
    return pa.ListArray.from_arrays([0, table.num_rows], table.to_struct_array().combine_chunks())


def _rows(tables: pa.ListArray) -> pa.Table:
    return pa.Table.from_struct_array(tables.flatten())
