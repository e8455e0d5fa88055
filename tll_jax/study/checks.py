"""Checks of a study's settings and data that run before any training."""

from collections.abc import Mapping, Sequence

from tll_jax import processes
from tll_jax.data.splits import Manifest
from tll_jax.devices import check_batch_size
from tll_jax.errors import InvalidValue
from tll_jax.models.stages import check_image_size
from tll_jax.study.folder import is_done, stage_folder
from tll_jax.study.networks import siamese, training_network
from tll_jax.study.settings import Loop, Study
from tll_jax.study.train import Context, Trainings
from tll_jax.training import step
from tll_jax.training.lora import targeted_layers
from tll_jax.training.state import initial_shapes
from tll_jax.typing import ImageSource


def check_image_sizes(study: Study) -> None:
    """Refuses image sizes that a backbone cannot embed, or that change a head's parameters between fine-tuning and
    evaluation.

    A head on whole maps has a parameter for each position, so its shapes depend on the image size.

    Raises:
      ValueError: a size is no multiple of a backbone's patch, or too small; or a model is fine-tuned at one size and
        evaluated at another that gives other parameter shapes.
    """
    evaluated = study.evaluate.geometry.size
    for name, model in study.models.items():
        stages = {f"models.{name}.pretrain": model.pretrain, f"models.{name}.finetune": model.finetune}
        for path, stage in {**stages, "evaluate": study.evaluate}.items():
            if stage is None:
                continue
            try:
                check_image_size(model.backbone, stage.geometry.size)
            except InvalidValue as error:
                raise InvalidValue(
                    f"config.{path}.geometry.size is {stage.geometry.size}, which config.models.{name}.backbone does "
                    f"not take: {error}"
                ) from error
        if model.finetune is None or model.finetune.geometry.size == evaluated:
            continue
        tuned = model.finetune.geometry.size
        network = siamese(model)
        if initial_shapes(network, size=tuned) != initial_shapes(network, size=evaluated):
            raise InvalidValue(
                f"config.models.{name}.finetune.geometry.size is {tuned} and config.evaluate.geometry.size is "
                f"{evaluated}: {type(model.head).__name__} has other parameters for images of another size; "
                "make the two equal, or take a head on pooled features, such as Projection"
            )


def check_lora(study: Study) -> None:
    """Refuses LoRA settings that match no layer of the backbone.

    Raises:
      ValueError: a model's `finetune.lora` names no layer that can be adapted.
    """
    for name, model in study.models.items():
        if model.finetune is not None and model.finetune.lora is not None:
            shapes = initial_shapes(siamese(model), size=model.finetune.geometry.size)["params"]["backbone"]
            try:
                targeted_layers(model.finetune.lora, shapes, frozen_stages=model.finetune.frozen_stages)
            except ValueError as error:
                raise InvalidValue(f"config.models.{name}.finetune.lora: {error}") from error


def check_batch_sizes(study: Study, context: Context, manifest: Manifest, sources: Mapping[str, ImageSource]) -> None:
    """Refuses batch sizes that exceed the training data or cannot be split evenly over the devices.

    Raises:
      ValueError: names the field and its value.
    """
    for name, model in study.models.items():
        parts: list[tuple[str, Loop, int]] = []
        if model.pretrain is not None:
            parts.append(("pretrain", model.pretrain.loop, len(sources[name])))
        if model.finetune is not None:
            parts.append(("finetune", model.finetune.loop, len(manifest.train)))
        for stage, loop_settings, available in parts:
            path = f"config.models.{name}.{stage}.loop.batch_size"
            if loop_settings.batch_size > available:
                raise InvalidValue(
                    f"{path} is {loop_settings.batch_size}, more than the {available} training examples there are"
                )
            try:
                check_batch_size(loop_settings.batch_size, context.mesh)
            except ValueError as error:
                raise InvalidValue(f"{path}: {error}") from error


def check_grad_accum_steps(study: Study, sources: Mapping[str, ImageSource]) -> None:
    """Refuses gradient accumulation where it would change the loss: batch statistics, or losses over pairs of rows.

    Raises:
      ValueError: names the field.
    """
    for name, model in study.models.items():
        for stage, settings in (("pretrain", model.pretrain), ("finetune", model.finetune)):
            if settings is None or settings.loop.grad_accum_steps == 1:
                continue
            classes = sources[name].num_classes if name in sources else 0
            network = training_network(model, stage, num_classes=classes)
            shapes = initial_shapes(network, size=settings.geometry.size)
            try:
                kept = ("backbone",) if network.keep_statistics else ()
                statistics = {part: values for part, values in shapes["batch_stats"].items() if part not in kept}
                step.check_grad_accum_steps(settings.objective, statistics)
            except ValueError as error:
                raise InvalidValue(f"config.models.{name}.{stage}.loop.{error}") from error


def check_fits_nothing(study: Study) -> None:
    """Refuses systems with learned parameters in `faces_included`, which ranks all pairs, training pairs among them.

    Raises:
      ValueError: names the system.
    """
    for name in study.faces_included:
        if name in study.systems and study.systems[name].fits != "nothing":
            raise InvalidValue(
                f"config.faces_included names {name}, which learns from pairs that it would be tested on; leave it out"
            )


def check_trained(planned: Sequence[Trainings], context: Context, stages_to_run: Sequence[str]) -> None:
    """Refuses runs that need a training stage that is neither finished nor among `stages_to_run`.

    Raises:
      ValueError: names the stage and the model.
    """
    for model in planned:
        needed = [("pretrain", one.label, one.key) for one in model.starts if model.images is not None]
        if set(stages_to_run) != {"pretrain"}:
            needed += [("finetune", model.name, one.key) for one in model.finetunings]
        for stage, label, key in needed:
            assert key is not None
            folder = stage_folder(context.workdir, stage, key)
            if stage not in stages_to_run and not processes.from_first(is_done(folder, key, stage)):
                # A new training needs a new evaluation.
                stale = {"explain", "report"} & set(stages_to_run) and "evaluate" not in stages_to_run
                raise InvalidValue(
                    f"{stage} of model {label} has not been done with these settings by this version: add "
                    f"{f'{stage} and evaluate' if stale else stage} to --stages"
                )
