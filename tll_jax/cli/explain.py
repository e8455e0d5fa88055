"""`tll explain`."""

import argparse
from pathlib import Path

from tll_jax.cli.arguments import FirstName, a_path, a_query, a_run, positive, start_devices
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable
from tll_jax.model_files import DEFAULT

HELP = "show why a model finds two images alike"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "run",
        type=a_run,
        nargs="?",
        default=Path(DEFAULT),
        metavar="RUN",
        help="model file, or run folder: STUDY/models/<name>/seed-<k> or STUDY/systems/<name>; by default the model "
        "that tll find takes",
    )
    parser.add_argument("--left", type=a_path, metavar="FILE", help="an image, with --right another one")
    parser.add_argument("--right", type=a_path, metavar="FILE")
    parser.add_argument(
        "--query",
        type=a_query,
        metavar="ID|FILE",
        help="instead: a test pair's id, or an image, beside its nearest neighbors in the run's gallery",
    )
    parser.add_argument(
        "--neighbors", type=positive, default=3, metavar="N", help="with --query: how many; 3 by default"
    )
    parser.add_argument("--candidates", type=positive, dest="neighbors", action=FirstName)
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME",
        help="may be repeated; --list names them, 'all' takes minutes; one of each kind by default",
    )
    parser.add_argument(
        "--target",
        default="cosine",
        metavar="NAME",
        help="what the maps explain: cosine (default), dot, mse (Munteanu 2022) or squared-l2; or why this image and "
        "not others: margin (over the nearest other) or log-softmax (among all)",
    )
    parser.add_argument(
        "--foil",
        type=a_path,
        action="append",
        default=[],
        metavar="FILE",
        help="with --left and --right: another image, for margin and log-softmax; may be repeated",
    )
    parser.add_argument(
        "--layer",
        default="",
        metavar="NAME",
        help="whose maps the CAM family and pair attributions look at, such as stage3",
    )
    parser.add_argument("--signed", action="store_true", help="warm for the target, cold against it")
    parser.add_argument("--list", action="store_true", help="list the methods with their descriptions, and stop")
    parser.add_argument("--out", type=a_path, metavar="DIR", default=Path("explanation"), help="explanation by default")


def run(arguments: argparse.Namespace) -> None:
    """Writes a page with the maps of all methods side by side, and with which place of one image matches which of the
    other; the maps as a panel (PNG, SVG) and as arrays beside it."""
    from tll_jax.study.explain import ExplainRequest
    from tll_jax.study.explain_files import explain_files, explain_query
    from tll_jax.study.load import open_explainer

    start_devices()
    request = ExplainRequest(
        methods=tuple(arguments.method),
        layer=arguments.layer,
        target_name=arguments.target,
        signed=arguments.signed,
    )
    if arguments.list:
        explainer = open_explainer(arguments.run)
        print("\n".join(f"{name:28} {description}" for name, description in explainer.choices().items()))
        print("\n".join(f"{name:28} not for this model: {reason}" for name, reason in explainer.inapplicable().items()))
        return
    if (arguments.query is None) == (arguments.left is None) or (arguments.left is None) != (arguments.right is None):
        raise InvalidValue("give --left FILE and --right FILE, or --query ID or FILE")
    check_writable(arguments.out / "index.html")
    if arguments.query is None:
        page = explain_files(arguments.run, arguments.left, arguments.right, arguments.foil, arguments.out, request)
        print(page)
        return
    if arguments.foil:
        raise InvalidValue("--foil goes with --left and --right: a query's foils are the other images of the gallery")
    for page in explain_query(
        arguments.run, arguments.query, arguments.out, request, num_candidates=arguments.neighbors
    ):
        print(page)
