"""The console script `tll`: each command calls one function."""

import argparse
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from tll_jax import __version__, program
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable, given_path, write_json

CONTACT_SHEET = "contact-sheet.png"


def a_path(text: str) -> Path:
    """A path of the command line, `~` expanded."""
    try:
        return given_path(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def a_place(text: str) -> str:
    """Where pairs or images are, or which: "emoji" is a set, "./emoji" a folder."""
    a_path(text)
    return os.path.expanduser(text)


def a_query(text: str) -> str:
    """A pair's id, or a file."""
    place = a_place(text)
    return place if os.path.exists(place) else text


def at_least(least: int, text: str) -> int:
    """A whole number of the command line."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a whole number, {least} or more")
    return number


positive, natural = partial(at_least, 1), partial(at_least, 0)


def main(arguments: list[str] | None = None) -> None:
    """Parses and runs one command; errors that a user can mend are printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(prog="tll", description="Finds images that look alike, and shows why.")
    parser.add_argument("--version", action="version", version=f"tll_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    evaluate = commands.add_parser(
        "evaluate", help="score a trained arm or a system on other look-alike pairs", description=_evaluate.__doc__
    )
    evaluate.add_argument(
        "run",
        type=a_path,
        metavar="RUN",
        help="run folder: STUDY/arms/<arm>/seed-<k>, STUDY/systems/<name> or STUDY/systems/<name>/seed-<k>",
    )
    asked = evaluate.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--pairs",
        type=a_place,
        metavar="PATH",
        help="'emoji', or a folder or zip: Totally Looks Like in any layout, a CSV with the columns left,right, "
        "or two folders with equal file names",
    )
    evaluate.add_argument(
        "--exclude-faces",
        action="store_true",
        help="leave out pairs that show a face on either side (needs the extra tll_jax[faces] for photographs)",
    )
    evaluate.add_argument(
        "--include-training",
        action="store_true",
        help="score also the pairs whose pictures RUN was trained, validated or pretrained on, which are left out "
        "otherwise",
    )
    evaluate.add_argument("--out", type=a_path, metavar="FILE", help="also write the figures to FILE as JSON")
    asked.add_argument(
        "--candidates",
        type=a_path,
        metavar="FILE",
        help="instead of pairs, the course edition's test_candidates.csv beside test/left and test/right",
    )
    evaluate.add_argument(
        "--submission", type=a_path, metavar="OUT", help="with --candidates: where to write each candidate's confidence"
    )
    evaluate.set_defaults(run_command=_evaluate)

    compare = commands.add_parser(
        "compare", help="put the systems of finished studies side by side", description=_compare.__doc__
    )
    compare.add_argument("runs", type=a_path, nargs="+", metavar="RUN", help="the --workdir of a finished study")
    compare.add_argument(
        "--folds", action="store_true", help="the runs are one study on each of its test folds: pool them"
    )
    compare.add_argument("--out", type=a_path, metavar="DIR", default=Path("compare"), help="compare by default")
    compare.set_defaults(run_command=_compare)

    explain = commands.add_parser(
        "explain", help="show why a trained arm finds two images alike", description=_explain.__doc__
    )
    explain.add_argument("run", type=a_path, metavar="RUN", help="run folder: STUDY/arms/<arm>/seed-<k>")
    explain.add_argument("--left", type=a_path, metavar="FILE", help="an image, with --right another one")
    explain.add_argument("--right", type=a_path, metavar="FILE")
    explain.add_argument(
        "--query",
        type=a_query,
        metavar="ID|FILE",
        help="instead: a test pair's id, or an image, beside the run's nearest candidates",
    )
    explain.add_argument(
        "--candidates", type=positive, default=3, metavar="N", help="with --query: how many; 3 by default"
    )
    explain.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME",
        help="may be repeated; --list names them, 'all' takes minutes; one of each kind by default",
    )
    explain.add_argument(
        "--target",
        default="cosine",
        metavar="NAME",
        help="what the maps explain: cosine (default), dot, mse (the paper's) or squared-l2; or why this image and not "
        "others: margin (over the nearest other) or log-softmax (among all)",
    )
    explain.add_argument(
        "--foil",
        type=a_path,
        action="append",
        default=[],
        metavar="FILE",
        help="with --left and --right: another image, for margin and log-softmax; may be repeated",
    )
    explain.add_argument("--layer", default="", metavar="NAME", help="whose maps the CAM family shows, such as stage3")
    explain.add_argument("--signed", action="store_true", help="warm for the target, cold against it")
    explain.add_argument("--list", action="store_true", help="name the methods and what they say, and stop")
    explain.add_argument(
        "--out", type=a_path, metavar="DIR", default=Path("explanation"), help="explanation by default"
    )
    explain.set_defaults(run_command=_explain)

    embed = commands.add_parser(
        "embed", help="embed a folder of images with a trained arm, for a gallery", description=_embed.__doc__
    )
    embed.add_argument("run", type=a_path, metavar="RUN", help="run folder: STUDY/arms/<arm>/seed-<k>")
    embed.add_argument("images", type=a_place, metavar="IMAGES", help="a folder or zip of images, at whatever depth")
    embed.add_argument("--out", type=a_path, required=True, metavar="DIR", help="where the shards go")
    embed.add_argument(
        "--shard-size",
        type=positive,
        default=8192,
        metavar="N",
        help="images a shard, done anew after a kill; 8192 by default",
    )
    embed.add_argument(
        "--process", type=natural, default=0, metavar="K", help="of several processes, which this is; 0 by default"
    )
    embed.add_argument(
        "--num-processes", type=positive, default=1, metavar="N", help="how many share the shards; 1 by default"
    )
    embed.set_defaults(run_command=_embed)

    export = commands.add_parser(
        "export", help="write a trained arm's backbone for PyTorch users", description=_export.__doc__
    )
    export.add_argument("run", type=a_path, metavar="RUN", help="run folder: STUDY/arms/<arm>/seed-<k>")
    export.add_argument("--out", type=a_path, required=True, metavar="FILE.safetensors", help="where to write it")
    export.set_defaults(run_command=_export)

    data = commands.add_parser("data", help="describe any pairs or images", description=_data.__doc__)
    data.add_argument(
        "path", type=a_place, metavar="PATH", help="'emoji', or a folder, a zip or a CSV of pairs or images"
    )
    data.add_argument("--out", type=a_path, metavar="DIR", help="also write DIR/contact-sheet.png, a sample to look at")
    data.set_defaults(run_command=_data)

    prepare = commands.add_parser(
        "prepare", help="write a data set once into a TFDS folder, checked", description=_prepare.__doc__
    )
    prepare.add_argument("name", metavar="NAME", help="totally_looks_like, imagenette or imagenet2012")
    prepare.add_argument(
        "--source",
        type=a_place,
        metavar="PATH",
        help="a folder or zip of pairs, or with train/CLASS/ and val/CLASS/, or the folder of ImageNet's tars; "
        "without it imagenette is downloaded",
    )
    prepare.add_argument(
        "--data-dir", type=a_place, metavar="DIR", help="where TFDS datasets lie; TFDS's own by default"
    )
    prepare.set_defaults(run_command=_prepare)

    review = commands.add_parser(
        "review", help="a page to check by eye which pairs the face filter drops", description=_review.__doc__
    )
    review.add_argument("pairs", type=a_place, metavar="PATH", help="'emoji', or a folder or zip of pairs")
    review.add_argument("--rule", choices=["none", "not-single", "both"], default="none")
    review.add_argument(
        "--face-overrides", type=a_place, metavar="FILE", help="corrections made on an earlier page: id,side,faces"
    )
    review.add_argument("--out", type=a_path, metavar="FILE", default=Path("faces.html"))
    review.set_defaults(run_command=_review)

    plan = commands.add_parser(
        "plan", help="what a config's training step needs on devices that are not there", description=_plan.__doc__
    )
    plan.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]", help="a study, configs/X.py")
    plan.add_argument("--arm", default="", metavar="NAME", help="the study's first by default")
    plan.add_argument(
        "--stage", default="", choices=["pretrain", "finetune"], help="pretrain by default, where the arm has it"
    )
    plan.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="TARGET",
        help="cpu:N, or a slice of TPUs such as tpu:v5e:4x4 (needs the extra tll_jax[tpu], not the hardware); may be "
        "repeated",
    )
    plan.add_argument("--batch-size", type=positive, metavar="N", help="instead of the config's")
    plan.add_argument("--dtype", choices=["float32", "bfloat16"], help="instead of the config's")
    plan.add_argument(
        "--loop",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another field of the stage's loop; may be repeated",
    )
    plan.add_argument(
        "--num-classes",
        type=positive,
        default=1000,
        metavar="N",
        help="of the images, which are not opened; 1000 by default",
    )
    plan.add_argument("--largest-batch", action="store_true", help="also search the largest batch that fits")
    plan.add_argument(
        "--out", type=a_path, metavar="FILE", help="keep the figures in FILE as JSON, and go on from there"
    )
    plan.add_argument("--again", action="store_true", help="also what FILE holds already")
    plan.set_defaults(run_command=_plan)

    doctor = commands.add_parser(
        "doctor", help="what a report of a bug needs, in one screen", description=_doctor.__doc__
    )
    doctor.set_defaults(run_command=_doctor)

    parsed = parser.parse_args(arguments)
    # What embed and prepare have done, the same command finds.
    goes_on = parsed.command in ("embed", "prepare")
    status = program.GOES_ON if goes_on else program.STOPPED
    with program.ending("tll", stopped_status=status, handles_signals=arguments is None):
        parsed.run_command(parsed)


def _start_devices() -> None:
    from tll_jax import devices
    from tll_jax.data.imaging import quiet_opencv

    quiet_opencv()
    devices.keep_compiled_programs()
    devices.refuse_missing_platform()


def _evaluate(arguments: argparse.Namespace) -> None:
    """Ranks every pair of a set among all its pairs, both directions, and prints the figures; pairs that RUN has
    learned from are left out, and counted. Or, with --candidates, writes the course edition's submission."""
    from tll_jax import runs
    from tll_jax.data.recognize import recognize_pairs
    from tll_jax.report.table import rows_markdown

    for out in (arguments.out, arguments.submission):
        if out is not None:
            check_writable(out)
    _start_devices()
    if (arguments.candidates is None) != (arguments.submission is None):
        raise InvalidValue("--candidates FILE and --submission OUT go together")
    if arguments.candidates is not None:
        if arguments.exclude_faces or arguments.include_training or arguments.out is not None:
            raise InvalidValue(
                "--exclude-faces, --include-training and --out go with --pairs: nobody knows the matches of "
                "--candidates"
            )
        print(
            f"{arguments.submission}: {runs.submit(arguments.run, arguments.candidates, arguments.submission)} queries"
        )
        return
    result = runs.evaluate_on(
        arguments.run,
        recognize_pairs(arguments.pairs),
        exclude_faces=arguments.exclude_faces,
        include_training=arguments.include_training,
    )
    print(rows_markdown(result))
    for sentence in result["learned_from"]["words"]:
        print(sentence)
    if arguments.out is not None:
        write_json(arguments.out, result)


def _compare(arguments: argparse.Namespace) -> None:
    """Prints one table of the systems of all RUNs, which must have tested the same pairs, and writes it into DIR with a
    matrix of p-values, rank histograms and recall against k."""
    from tll_jax.report.comparison import write_comparison
    from tll_jax.report.table import rows_markdown

    check_writable(arguments.out / "compare.md")
    print(rows_markdown(write_comparison(arguments.runs, arguments.out, folds=arguments.folds)))
    print(arguments.out / "compare.md")


def _explain(arguments: argparse.Namespace) -> None:
    """Writes a page with the maps of all methods side by side, and with which place of one image matches which of the
    other; the maps as a panel (PNG, SVG) and as arrays beside it."""
    from tll_jax import runs
    from tll_jax.explain import Asked

    _start_devices()
    asked = Asked(methods=tuple(arguments.method), layer=arguments.layer)
    if arguments.list:
        print("\n".join(f"{name:28} {words}" for name, words in runs.open_explainer(arguments.run).choices().items()))
        return
    if (arguments.query is None) == (arguments.left is None) or (arguments.left is None) != (arguments.right is None):
        raise InvalidValue("give --left FILE and --right FILE, or --query ID or FILE")
    check_writable(arguments.out / "index.html")
    how = {"target": arguments.target, "signed": arguments.signed}
    if arguments.query is None:
        page = runs.explain_files(
            arguments.run, arguments.left, arguments.right, arguments.foil, arguments.out, asked, **how
        )
        print(page)
        return
    if arguments.foil:
        raise InvalidValue("--foil goes with --left and --right: a query's foils are the other candidates")
    for page in runs.explain_query(
        arguments.run, arguments.query, arguments.out, asked, num_candidates=arguments.candidates, **how
    ):
        print(page)


def _embed(arguments: argparse.Namespace) -> None:
    """Embeds images in shards; of N processes, number K takes the shards K, K + N, ... A shard that is there is
    skipped, so the same command goes on after a kill. docs/galleries.md says how to rank among the embeddings."""
    from tll_jax import runs
    from tll_jax.data.archive import printable

    _start_devices()
    num_embedded = 0
    for shard in runs.embed(
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


def _export(arguments: argparse.Namespace) -> None:
    """Writes the backbone of a trained arm as .safetensors, under torchvision's names where it is a ResNet."""
    from tll_jax import runs

    _start_devices()
    print(f"{arguments.out}: {runs.export(arguments.run, arguments.out)} tensors")


def _review(arguments: argparse.Namespace) -> None:
    """Writes a page of all pairs, kept and dropped, with the faces that were found and boxes to correct them."""
    from tll_jax import config
    from tll_jax.data.imaging import quiet_opencv
    from tll_jax.data.recognize import recognize_pairs
    from tll_jax.report.review import write_review

    quiet_opencv()
    check_writable(arguments.out)
    settings = recognize_pairs(arguments.pairs)
    config.validate(settings, path="PATH")
    if arguments.face_overrides is not None:
        if arguments.pairs == "emoji":
            raise InvalidValue("--face-overrides: the emoji pairs take none, their faces follow from their categories")
        settings.face_overrides = arguments.face_overrides
    print(write_review(settings.open(), arguments.out, rule=arguments.rule))


def _prepare(arguments: argparse.Namespace) -> None:
    """Writes a data set into a TFDS folder, checked picture by picture, and reports what is there; it can be killed and
    started again."""
    from tll_jax.data.imaging import quiet_opencv
    from tll_jax.data.prepare import prepare

    quiet_opencv()
    print(prepare(arguments.name, source=arguments.source, data_dir=arguments.data_dir))


def _plan(arguments: argparse.Namespace) -> None:
    """Compiles the config's training step for devices that need not be there, and prints what it needs on them:
    parameters, FLOPs, memory, collectives, and an estimate of its time. Large networks take minutes a target."""
    from tll_jax import plan

    logging.getLogger("tll_jax").setLevel(logging.INFO)
    if arguments.out is not None:
        check_writable(arguments.out)
    loop = {"batch_size": arguments.batch_size, "dtype": arguments.dtype} | dict(map(_setting, arguments.loop))
    asked = plan.Asked(
        arm=arguments.arm,
        stage=arguments.stage,
        loop={name: value for name, value in loop.items() if value is not None},
        num_classes=arguments.num_classes,
    )
    records = plan.plan(
        plan.load_study(arguments.config),
        arguments.target,
        asked=asked,
        out=arguments.out,
        search_largest=arguments.largest_batch,
        again=arguments.again,
    )
    print(plan.table(records))


def _setting(text: str) -> tuple[str, Any]:
    """ "field=value" as the two, the value read as JSON where it is that, and else as words."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue(f"--loop is {text!r}; it must be FIELD=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _doctor(_arguments: argparse.Namespace) -> None:
    """Says what is installed and what works: versions, extras, devices, memory, speed, cache, decoders and data."""
    from tll_jax.doctor import examine

    print(examine())


def _data(arguments: argparse.Namespace) -> None:
    """Says what stands at a path: its kind and layout, counts, formats, sizes, broken files and duplicates."""
    from tll_jax.data.describe import contact_sheet, describe
    from tll_jax.data.imaging import quiet_opencv, write_image
    from tll_jax.data.recognize import recognize

    quiet_opencv()
    if arguments.out is not None:
        check_writable(arguments.out / CONTACT_SHEET)
    found = describe(recognize(arguments.path))
    print(found)
    if arguments.out is None:
        print("A sample to look at: add --out DIR")
    else:
        path = arguments.out / CONTACT_SHEET
        write_image(path, contact_sheet(found.examples))
        print(f"A sample to look at: {path}")
