"""`tll embed`."""

import argparse
import logging
import shlex
import sys
from typing import TYPE_CHECKING

from tll_jax.cli.arguments import a_place, a_run, natural, positive, start_devices
from tll_jax.errors import InvalidValue

if TYPE_CHECKING:
    from tll_jax.gallery.embed import Engine

logger = logging.getLogger(__name__)

HELP = "embed a folder of images into a gallery"
FORMER = ("shard_size", "process", "num_processes")
"""Options of version 0.1 for galleries in shards, accepted and ignored for one release."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "run",
        type=a_run,
        metavar="RUN",
        help="model file, or run folder: STUDY/models/<name>/seed-<k>, STUDY/systems/<name>",
    )
    parser.add_argument("images", type=a_place, metavar="IMAGES", help="a folder or zip of images, at any depth")
    parser.add_argument(
        "--out", type=a_place, required=True, metavar="DIR", help="the gallery, a folder or object storage"
    )
    parser.add_argument(
        "--engine",
        choices=("threads", "ray"),
        default="threads",
        help="this process and its threads, or Ray's actors on many machines (extra: ray)",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="with --engine=ray the number of actors (default: one a GPU, or without GPUs one a machine)",
    )
    parser.add_argument("--shard-size", type=positive, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=natural, help=argparse.SUPPRESS)
    parser.add_argument("--num-processes", type=positive, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Adds images to a gallery. Images in it are not embedded again, so the same command continues after a kill.
    To rank among the embeddings see docs/galleries.md."""
    for name in FORMER:
        if getattr(arguments, name) is not None:
            logger.warning("--%s does nothing any more: one process writes a gallery", name.replace("_", "-"))
    if arguments.processes is not None and arguments.engine != "ray":
        raise InvalidValue("--processes goes with --engine=ray")
    engine = _ray_engine(arguments.processes) if arguments.engine == "ray" else None
    start_devices()
    from tll_jax.data.archive import printable
    from tll_jax.gallery.embed import Progress
    from tll_jax.gallery.stored import embed_gallery

    def tell(progress: Progress) -> None:
        print(f"{progress.done:,} of {progress.total:,} images, {progress.rate:.0f} images/s", flush=True)

    command = shlex.join(["tll", *sys.argv[1:]])
    index = embed_gallery(
        str(arguments.run), arguments.images, arguments.out, command=command, tell=tell, engine=engine
    )
    for file, reason in index.broken.items():
        print(printable(f"  {file.path}: {reason}"))
    num_broken = len(index.broken)
    print(f"{arguments.out}: {index.embedded:,} images embedded, {index.kept:,} were there, {num_broken:,} are broken")


def _ray_engine(processes: int | None) -> "Engine":
    import jax

    from tll_jax.gallery.ray_engine import RayEngine

    engine = RayEngine(processes)
    # The GPUs are the actors'; JAX would take most of the memory of all that it sees.
    jax.config.update("jax_platforms", "cpu")
    return engine
