"""The networks of a study's models, their initial variables, and the programs that train them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tll_jax import serialize
from tll_jax.data import pipeline
from tll_jax.devices import fsdp_shardings
from tll_jax.evaluation.embed import Embedder
from tll_jax.models.network import Network, trainable_mask
from tll_jax.models.weights import load_backbone
from tll_jax.study.folder import Trained
from tll_jax.study.settings import Evaluate, Finetune, Loop, Model, Pretrain
from tll_jax.training import lora
from tll_jax.training.lora import Lora
from tll_jax.training.optimizers import freeze
from tll_jax.training.state import TrainState, init_variables, initial_shapes, make_state
from tll_jax.training.step import NetworkLoss, make_step
from tll_jax.typing import Activation, Augment, Objective, Optimizer

MOST_PROGRAMS = 32
"""Size of the cache of training programs."""


def pretraining_network(model: Model, *, num_classes: int) -> Network:
    """The model's backbone under the head of its pretraining objective."""
    settings = model.pretrain
    assert settings is not None
    head = settings.objective.head(num_classes=num_classes)
    assert head is not None, "a pretraining objective brings its own head"
    dtype = jnp.dtype(settings.loop.dtype)
    return Network(
        backbone=model.backbone.build(dtype=dtype),
        head=head.build(dtype=dtype),
        remat=settings.loop.remat,
    )


def training_network(model: Model, stage: str, *, num_classes: int) -> Network:
    """The network that the stage "pretrain" or "finetune" trains; only "pretrain" uses `num_classes`."""
    return pretraining_network(model, num_classes=num_classes) if stage == "pretrain" else siamese(model)


def siamese(model: Model) -> Network:
    """The network that embeds one image: backbone and the model's head."""
    finetuning = model.finetune
    dtype = jnp.dtype(finetuning.loop.dtype if finetuning else "float32")
    return Network(
        backbone=model.backbone.build(dtype=dtype),
        head=model.head.build(dtype=dtype),
        frozen_stages=finetuning.frozen_stages if finetuning else 0,
        remat=finetuning.loop.remat if finetuning else False,
        keep_statistics=finetuning is not None and finetuning.lora is not None,
    )


def explainable(model: Model, *, activation: Activation = nn.relu) -> Network:
    """The model's network for saliency maps, in float32 and without frozen stages, which would stop gradients to the
    image.

    Args:
      activation: in place of the backbone's ReLUs; may have another gradient, as in guided backpropagation.
    """
    return Network(
        backbone=model.backbone.build(dtype=jnp.float32, activation=activation),
        head=model.head.build(dtype=jnp.float32),
    )


def ready_made(model: Model) -> Trained | None:
    """The pretrained backbone from the model's weight file; None for a model without one.

    Raises:
      FileNotFoundError, ImportError, ValueError: the file is not there, or its weights are not this backbone's.
    """
    if model.weights is None:
        return None
    variables = load_backbone(model.backbone, model.weights)
    under = {collection: {"backbone": values} for collection, values in variables.items()}
    return Trained(folder=model.weights.find().parent, read=lambda: under)


def initial_variables(model: Model, pretrained: Trained | None, *, size: int, seed: int) -> dict[str, Any]:
    """Variables of the Siamese network before fine-tuning: a new head on the pretrained or random backbone."""
    variables = init_variables(siamese(model), size=size, seed=seed)
    if pretrained is None:
        return variables
    trained = pretrained.variables
    # AlexNet and VGG have no batch statistics.
    return {
        collection: values | ({"backbone": trained[collection]["backbone"]} if "backbone" in values else {})
        for collection, values in variables.items()
    }


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A copy of the settings that determine a training stage's program; equal where all values are equal."""

    fingerprint: str
    objective: Objective = field(compare=False)
    augments: tuple[Augment, Augment] = field(compare=False)
    optimizer: Optimizer = field(compare=False)
    loop: Loop = field(compare=False)
    frozen_stages: int | None = field(compare=False)
    """None in pretraining, where no stage can be frozen."""
    lora: Lora | None = field(compare=False)


def recipe_of(settings: Pretrain | Finetune) -> Recipe:
    """The part of a stage's settings that determines its program: no seed, no data, no logging or saving intervals."""
    parts: dict[str, Any] = {
        "objective": settings.objective,
        "augments": settings.augments,
        "optimizer": settings.optimizer,
        "frozen_stages": settings.frozen_stages if isinstance(settings, Finetune) else None,
        "lora": settings.lora if isinstance(settings, Finetune) else None,
    }
    names = ("num_steps", "batch_size", "grad_accum_steps", "fsdp_min_size")
    fingerprint = serialize.fingerprint(parts | {name: getattr(settings.loop, name) for name in names})
    # A copy: the program is traced later and cached, and must not see changes to the settings.
    return Recipe(fingerprint=fingerprint, loop=copy.deepcopy(settings.loop), **copy.deepcopy(parts))


@dataclass(frozen=True, kw_only=True)
class Program:
    """The jitted functions of a training stage, independent of seed, data and initial variables."""

    step: Any
    """`(key, state, batch, *base) -> (state, metrics)`, jitted; see `make_step`."""
    start: Callable[[dict[str, Any]], TrainState]
    """`(trained variables) -> train state before the first step`, jitted."""
    state_shapes: TrainState
    split: Callable[[dict[str, Any], jax.Array], tuple[Any, ...]] = lambda variables, key: (variables,)
    """`(variables of the network, key) -> (variables that are trained, *base)`; without adapters there is no base."""
    merge: Callable[..., dict[str, Any]] = lambda variables: variables
    """The inverse of `split`, jitted."""
    base_shapes: tuple[Any, ...] = ()


def make_program(network: Network, recipe: Recipe, *, size: int, mesh: Mesh) -> Program:
    """Builds the training program of a recipe for a network on square images of `size` pixels."""
    variables, *base_shapes = (initial_shapes(network, size=size),)
    adapting: dict[str, Any] = {}
    if recipe.lora is not None:
        split = partial(lora.split, recipe.lora, frozen_stages=recipe.frozen_stages or 0)
        variables, *base_shapes = jax.eval_shape(split, variables, jax.random.key(0))
        adapting = {"split": jax.jit(split), "merge": jax.jit(partial(lora.merge, recipe.lora))}
    optimizer = recipe.optimizer.build(num_steps=recipe.loop.num_steps, batch_size=recipe.loop.batch_size)
    if recipe.frozen_stages is not None:
        optimizer = freeze(optimizer, trainable_mask(variables["params"], recipe.frozen_stages))
    start = jax.jit(partial(make_state, optimizer=optimizer))
    state_shapes = start.eval_shape(variables)
    step = make_step(
        NetworkLoss(network, recipe.objective, recipe.lora),
        recipe.augments,
        optimizer,
        state_shardings=fsdp_shardings(state_shapes, recipe.loop.fsdp_min_size, mesh),
        grad_accum_steps=recipe.loop.grad_accum_steps,
    )
    return Program(step=step, start=start, state_shapes=state_shapes, base_shapes=tuple(base_shapes), **adapting)


shared_program = lru_cache(MOST_PROGRAMS)(make_program)
"""`make_program`, cached: seeds and models of equal network and recipe share one traced and compiled step."""


def make_embedder(embed: Any, evaluate: Evaluate, mesh: Mesh, readers: pipeline.Readers | None = None) -> Embedder:
    """An embedder with the study's geometry and batch size.

    Args:
      readers: by default, threads read the images.
    """
    return Embedder(
        embed=embed,
        geometry=evaluate.geometry,
        batch_size=evaluate.batch_size,
        mesh=mesh,
        readers=pipeline.Readers() if readers is None else readers,
    )
