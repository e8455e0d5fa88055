"""`tll embed`."""

import argparse

from tll_jax.cli.arguments import a_path, a_place, a_run, natural, positive, start_devices

HELP = "embed a folder of images with a model, for a gallery"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "run",
        type=a_run,
        metavar="RUN",
        help="model file, or run folder: STUDY/models/<name>/seed-<k>, STUDY/systems/<name>",
    )
    parser.add_argument("images", type=a_place, metavar="IMAGES", help="a folder or zip of images, at whatever depth")
    parser.add_argument("--out", type=a_path, required=True, metavar="DIR", help="where the shards go")
    parser.add_argument(
        "--shard-size",
        type=positive,
        default=8192,
        metavar="N",
        help="images a shard, done anew after a kill; 8192 by default",
    )
    parser.add_argument(
        "--process", type=natural, default=0, metavar="K", help="of several processes, which this is; 0 by default"
    )
    parser.add_argument(
        "--num-processes", type=positive, default=1, metavar="N", help="how many share the shards; 1 by default"
    )


def run(arguments: argparse.Namespace) -> None:
    """Embeds images in shards; of N processes, number K takes the shards K, K + N, ... A shard that is there is
    skipped, so the same command goes on after a kill. docs/galleries.md says how to rank among the embeddings."""
    from tll_jax.data.archive import printable
    from tll_jax.study.other_pairs import embed

    start_devices()
    num_embedded = 0
    for shard in embed(
        arguments.run,
        arguments.images,
        arguments.out,
        shard_size=arguments.shard_size,
        process=arguments.process,
        num_processes=arguments.num_processes,
    ):
        done = "were there" if shard.was_there else "embedded"
        print(f"shard {shard.number}: {shard.num_images} images {done}, {len(shard.broken)} of them broken", flush=True)
        for name, reason in shard.broken:
            print(printable(f"  {name}: {reason}"), flush=True)
        num_embedded += 0 if shard.was_there else shard.num_images
    print(f"{arguments.out}: {num_embedded} images embedded by this process")
