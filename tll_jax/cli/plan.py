"""`tll plan`."""

import argparse
import json
import logging
from typing import Any

from tll_jax.cli.arguments import FirstName, a_path, positive
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable

HELP = "what a config's training step needs on devices that are not there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]", help="a study, configs/X.py")
    parser.add_argument("--model", default="", metavar="NAME", help="the study's first by default")
    parser.add_argument("--arm", dest="model", action=FirstName)
    parser.add_argument(
        "--stage", default="", choices=["pretrain", "finetune"], help="pretrain by default, where the model has it"
    )
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="TARGET",
        help="cpu:N, or a slice of TPUs such as tpu:v5e:4x4 (needs the extra tll_jax[tpu], not the hardware); may be "
        "repeated",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="instead of the config's")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="instead of the config's")
    parser.add_argument(
        "--loop",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another field of the stage's loop; may be repeated",
    )
    parser.add_argument(
        "--num-classes",
        type=positive,
        default=1000,
        metavar="N",
        help="of the images, which are not opened; 1000 by default",
    )
    parser.add_argument("--largest-batch", action="store_true", help="also search the largest batch that fits")
    parser.add_argument(
        "--out", type=a_path, metavar="FILE", help="keep the figures in FILE as JSON, and go on from there"
    )
    parser.add_argument("--again", action="store_true", help="also what FILE holds already")


def run(arguments: argparse.Namespace) -> None:
    """Compiles the config's training step for devices that need not be there, and prints what it needs on them:
    parameters, FLOPs, memory, collectives, and an estimate of its time. Large networks take minutes a target."""
    from tll_jax.planning import plan
    from tll_jax.planning.table import table

    logging.getLogger("tll_jax").setLevel(logging.INFO)
    if arguments.out is not None:
        check_writable(arguments.out)
    loop = {"batch_size": arguments.batch_size, "dtype": arguments.dtype} | dict(map(_setting, arguments.loop))
    request = plan.PlanRequest(
        model=arguments.model,
        stage=arguments.stage,
        loop={name: value for name, value in loop.items() if value is not None},
        num_classes=arguments.num_classes,
    )
    records = plan.plan(
        plan.load_study(arguments.config),
        arguments.target,
        request=request,
        out=arguments.out,
        search_largest=arguments.largest_batch,
        again=arguments.again,
    )
    print(table(records))


def _setting(text: str) -> tuple[str, Any]:
    """ "field=value" as the two, the value read as JSON where it is that, and else as words."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue(f"--loop is {text!r}; it must be FIELD=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
