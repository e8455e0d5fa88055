"""`tll evaluate`."""

import argparse

from tll_jax.cli.arguments import a_path, a_place, a_run, start_devices
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable, write_json

HELP = "evaluate a model or a system on other look-alike pairs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "run",
        type=a_run,
        metavar="RUN",
        help="model file, or run folder: STUDY/models/<name>/seed-<k>, STUDY/systems/<name> or "
        "STUDY/systems/<name>/seed-<k>",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--pairs",
        type=a_place,
        metavar="PATH",
        help="'emoji', or a folder or zip: Totally Looks Like in any layout, a CSV with the columns left,right, "
        "or two folders with equal file names",
    )
    parser.add_argument(
        "--exclude-faces",
        action="store_true",
        help="leave out pairs that show a face on either side (needs the extra tll_jax[faces] for photographs)",
    )
    parser.add_argument(
        "--include-training",
        action="store_true",
        help="also score pairs with pictures that RUN was trained, validated or pretrained on, which are left out "
        "by default",
    )
    parser.add_argument("--out", type=a_path, metavar="FILE", help="also write the metrics to FILE as JSON")
    source.add_argument(
        "--candidates",
        type=a_path,
        metavar="FILE",
        help="in place of --pairs: test_candidates.csv of the CSV edition of Totally Looks Like, beside test/left and "
        "test/right",
    )
    parser.add_argument(
        "--submission",
        type=a_path,
        metavar="OUT",
        help="with --candidates: the file of each candidate's confidence to write",
    )


def run(arguments: argparse.Namespace) -> None:
    """Ranks every pair of a set among all its pairs, in both directions, and prints recall at k and MRR; pairs that RUN
    was trained on are counted and left out. With --candidates, writes a submission for the test set of the CSV edition
    of Totally Looks Like instead."""
    _check(arguments)
    for out in (arguments.out, arguments.submission):
        if out is not None:
            check_writable(out)
    from tll_jax.data.recognize import recognize_pairs
    from tll_jax.report.table import rows_markdown
    from tll_jax.study.other_pairs import evaluate_on, submit

    start_devices()
    if arguments.candidates is not None:
        print(f"{arguments.submission}: {submit(arguments.run, arguments.candidates, arguments.submission)} queries")
        return
    result = evaluate_on(
        arguments.run,
        recognize_pairs(arguments.pairs),
        exclude_faces=arguments.exclude_faces,
        include_training=arguments.include_training,
    )
    print(rows_markdown(result))
    if arguments.out is not None:
        write_json(arguments.out, result)


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go together, before anything is loaded."""
    if (arguments.candidates is None) != (arguments.submission is None):
        raise InvalidValue("--candidates FILE and --submission OUT go together")
    if arguments.candidates is not None and (
        arguments.exclude_faces or arguments.include_training or arguments.out is not None
    ):
        raise InvalidValue(
            "--exclude-faces, --include-training and --out go with --pairs: nobody knows the matches of --candidates"
        )
