"""`tll explain`."""

import argparse
import logging
from pathlib import Path

from tll_jax.cli.arguments import FirstName, a_path, a_query, a_run, positive, start_devices
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable

HELP = "explain why a model finds two images alike"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "run",
        type=a_run,
        nargs="?",
        default=Path("default"),
        metavar="RUN",
        help="model file, or run folder: STUDY/models/<name>/seed-<k> or STUDY/systems/<name>; by default the model "
        "that tll find takes",
    )
    parser.add_argument("--left", type=a_path, metavar="FILE", help="the first image, with --right")
    parser.add_argument("--right", type=a_path, metavar="FILE")
    parser.add_argument(
        "--query",
        type=a_query,
        metavar="NAME|ID|FILE",
        help="in place of --left and --right: a test pair, by its name, the start of its name or its id, or an image "
        "file; its nearest neighbors are explained",
    )
    parser.add_argument(
        "--neighbors", type=positive, default=3, metavar="N", help="with --query: number of neighbors; default 3"
    )
    parser.add_argument("--candidates", type=positive, dest="neighbors", action=FirstName)
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME",
        help="saliency method: a name from --list, or 'all' (minutes); may be repeated; default: one of each kind",
    )
    parser.add_argument(
        "--target",
        default="cosine",
        metavar="NAME",
        help="the explained number: cosine (default), dot, mse (Munteanu 2022) or squared-l2; against other images: "
        "margin (over the nearest other) or log-softmax (among all)",
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
        help="stage for the CAM family and pair attributions, such as stage3",
    )
    parser.add_argument(
        "--signed", action="store_true", help="show positive contributions in warm, negative in cold colors"
    )
    parser.add_argument("--list", action="store_true", help="list the methods with their descriptions, and stop")
    parser.add_argument("--out", type=a_path, metavar="DIR", default=Path("explanation"), help="default: explanation")


def run(arguments: argparse.Namespace) -> None:
    """Writes a page with the saliency maps of several methods side by side and the places of one image that match those
    of the other; and the maps as a panel (PNG, SVG) and as arrays."""
    if not arguments.list:
        _check(arguments)
        check_writable(arguments.out / "index.html")
    from tll_jax.study.explain import ExplainRequest
    from tll_jax.study.explain_files import explain_files, explain_query
    from tll_jax.study.load import open_explainer

    start_devices()
    # A line of progress a method, on stderr.
    logging.getLogger("tll_jax").setLevel(logging.INFO)
    request = ExplainRequest(
        methods=tuple(arguments.method),
        layer=arguments.layer,
        target_name=arguments.target,
        signed=arguments.signed,
    )
    if arguments.list:
        explainer = open_explainer(arguments.run)
        missing = {name: f"not for this model: {reason}" for name, reason in explainer.inapplicable().items()}
        print("\n".join(f"{name:28} {words}" for name, words in (explainer.choices() | missing).items()))
        return
    if arguments.query is None:
        page = explain_files(arguments.run, arguments.left, arguments.right, arguments.foil, arguments.out, request)
        print(page)
        return
    for page in explain_query(
        arguments.run, arguments.query, arguments.out, request, num_candidates=arguments.neighbors
    ):
        print(page)


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go together, before anything is loaded."""
    if (arguments.query is None) == (arguments.left is None) or (arguments.left is None) != (arguments.right is None):
        raise InvalidValue("give --left FILE and --right FILE, or --query NAME, ID or FILE")
    if arguments.query is not None and arguments.foil:
        raise InvalidValue("--foil goes with --left and --right: a query's foils are the other images of the gallery")
