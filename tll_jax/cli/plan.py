"""`tll plan`."""

import argparse
import json
import logging
from typing import Any

from tll_jax.cli.arguments import FirstName, a_path, positive
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable

HELP = "estimate memory, time and communication of a config's training step on other devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]", help="the study: configs/X.py")
    parser.add_argument("--model", default="", metavar="NAME", help="default: the study's first model")
    parser.add_argument("--arm", dest="model", action=FirstName)
    parser.add_argument(
        "--stage", default="", choices=["pretrain", "finetune"], help="default: pretrain, if the model has it"
    )
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="TARGET",
        help="devices: cpu:N, or a TPU slice such as tpu:v5e:4x4 (needs the extra tll_jax[tpu], not the hardware); may "
        "be repeated",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="default: the config's")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: the config's")
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
        help="number of classes of the images, which are not opened; default 1000",
    )
    parser.add_argument("--largest-batch", action="store_true", help="also search for the largest batch size that fits")
    parser.add_argument(
        "--out", type=a_path, metavar="FILE", help="store the results in FILE as JSON, and continue from it"
    )
    parser.add_argument("--again", action="store_true", help="compute results in FILE again")


def run(arguments: argparse.Namespace) -> None:
    """Compiles the config's training step for devices that need not be attached, and prints parameters, FLOPs, memory,
    collectives, and an estimate of its time on them. Large networks take minutes a target."""
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
    """The field and the value of "field=value", the value parsed as JSON if possible."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue(f"--loop is {text!r}; it must be FIELD=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
