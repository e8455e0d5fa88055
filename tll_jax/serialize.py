"""Serialization of settings as JSON, and fingerprints of settings, by which finished stages are recognized.

A settings class of this package is written as its tag, which does not change when the class moves or is renamed.
Fingerprints use a field's first name. So moving and renaming leave fingerprints as they are. Fields marked
`field(metadata=NO_IDENTITY)` do not affect results and are left out of fingerprints; fields marked
`field(metadata=ADDED)` are left out at their default value, so that they can be added later.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from tll_jax.errors import InvalidValue

NO_IDENTITY: Mapping[str, Any] = MappingProxyType({"identity": False})
"""Metadata of a field that does not affect results, such as saving intervals and numbers of threads."""
ADDED: Mapping[str, Any] = MappingProxyType({"added": True})
"""Metadata of a field that earlier versions lack; its default must mean what they computed."""


def renamed(first_name: str, *, identity: bool = True) -> Mapping[str, Any]:
    """Metadata of a field that was formerly called `first_name`."""
    return MappingProxyType({"first_name": first_name, "identity": identity})


def first_names(kind: Any) -> dict[str, str]:
    """Present names of a dataclass's renamed fields by their first names; empty for other values."""
    entries = _fields(kind) if dataclasses.is_dataclass(kind) else ()
    return {entry.metadata["first_name"]: entry.name for entry in entries if "first_name" in entry.metadata}


MODULES = {
    "AdamW": "tll_jax.training.optimizers",
    "Adapter": "tll_jax.systems.adapter",
    "AlexNet": "tll_jax.models.alexnet_vgg",
    "AlexNetLpips": "tll_jax.models.weights",
    "Arm": "tll_jax.study.settings",
    "BagOfWords": "tll_jax.systems.bag_of_words",
    "BarlowTwins": "tll_jax.objectives.barlow_twins",
    "CenterCrop": "tll_jax.data.geometry",
    "ClassFolder": "tll_jax.data.folder",
    "ChainedHeads": "tll_jax.models.heads",
    "Classifier": "tll_jax.models.heads",
    "Classify": "tll_jax.objectives.classification",
    "ColorHistogram": "tll_jax.systems.baselines",
    "Contrastive": "tll_jax.objectives.contrastive",
    "ConvNeXt": "tll_jax.models.convnext",
    "Diagonal": "tll_jax.models.heads",
    "DlibFaces": "tll_jax.data.faces",
    "EfficientNetLite0": "tll_jax.models.efficientnet_lite",
    "EfficientNetLite0ImageNet": "tll_jax.models.weights",
    "EfficientNetLite2": "tll_jax.models.efficientnet_lite",
    "EfficientNetLite2ImageNet": "tll_jax.models.weights",
    "EmojiPairs": "tll_jax.data.emoji",
    "Ensemble": "tll_jax.systems.ensemble",
    "Evaluate": "tll_jax.study.settings",
    "Explain": "tll_jax.study.settings",
    "Finetune": "tll_jax.study.settings",
    "FrozenFeatures": "tll_jax.systems.frozen_features",
    "GridProjection": "tll_jax.models.heads",
    "Hog": "tll_jax.systems.baselines",
    "Identity": "tll_jax.models.heads",
    "ImageFolder": "tll_jax.data.folder",
    "ImagesOfPairs": "tll_jax.data.folder",
    "InfoNce": "tll_jax.objectives.info_nce",
    "Lars": "tll_jax.training.optimizers",
    "LinearMap": "tll_jax.systems.metric_learning",
    "LocalScaling": "tll_jax.systems.csls",
    "Loop": "tll_jax.training.settings",
    "Lora": "tll_jax.training.lora",
    "Lpips": "tll_jax.systems.lpips",
    "LpipsVectors": "tll_jax.models.heads",
    "MatchingFolders": "tll_jax.data.pair_folders",
    "MaximumMargin": "tll_jax.systems.metric_learning",
    "Mirrored": "tll_jax.systems.mirrored",
    "MobileNetV2": "tll_jax.models.mobilenet",
    "MultiSimilarity": "tll_jax.objectives.multi_similarity",
    "NearDuplicates": "tll_jax.data.duplicates",
    "Pad": "tll_jax.data.geometry",
    "PairsFromTable": "tll_jax.data.pair_folders",
    "Photometric": "tll_jax.augment.recipes",
    "PillowResize": "tll_jax.data.geometry",
    "Pixels": "tll_jax.systems.baselines",
    "Pretrain": "tll_jax.study.settings",
    "PrincipalComponents": "tll_jax.systems.metric_learning",
    "Probe": "tll_jax.evaluation.settings",
    "Projection": "tll_jax.models.heads",
    "Projector": "tll_jax.models.heads",
    "RandomResizedCrop": "tll_jax.data.geometry",
    "RectifiedProjection": "tll_jax.models.heads",
    "RelevantComponents": "tll_jax.systems.metric_learning",
    "Resize": "tll_jax.data.geometry",
    "ResNet": "tll_jax.models.resnet",
    "Sift": "tll_jax.systems.local_features",
    "SimClr": "tll_jax.objectives.simclr",
    "SpatialProjection": "tll_jax.models.heads",
    "Split": "tll_jax.data.splits",
    "Study": "tll_jax.study.settings",
    "Surf": "tll_jax.systems.local_features",
    "TfdsImages": "tll_jax.data.tfds_sources",
    "TfdsPairs": "tll_jax.data.tfds_sources",
    "TotallyLooksLike": "tll_jax.data.totally_looks_like",
    "Triplet": "tll_jax.objectives.triplet",
    "Vgg16": "tll_jax.models.alexnet_vgg",
    "Vgg16Lpips": "tll_jax.models.weights",
    "VicReg": "tll_jax.objectives.vicreg",
    "VisionTransformer": "tll_jax.models.vit",
    "WeightFile": "tll_jax.models.weights",
}
"""Modules of the package's settings classes by tag; a renamed class keeps its tag."""

CLASS_NAMES = {
    "Arm": "Model",
    "Classify": "Classification",
    "InfoNce": "InfoNCE",
    "LocalScaling": "CSLS",
    "SimClr": "SimCLR",
    "VicReg": "VICReg",
}
"""Present names of renamed classes by tag."""

TAGS_OF_PATHS = {
    "tll_jax.augment.recipes.Photometric": "Photometric",
    "tll_jax.config.Arm": "Arm",
    "tll_jax.config.Evaluate": "Evaluate",
    "tll_jax.config.Explain": "Explain",
    "tll_jax.config.Finetune": "Finetune",
    "tll_jax.config.Loop": "Loop",
    "tll_jax.config.Pretrain": "Pretrain",
    "tll_jax.config.Probe": "Probe",
    "tll_jax.config.Study": "Study",
    "tll_jax.data.duplicates.NearDuplicates": "NearDuplicates",
    "tll_jax.data.emoji.EmojiPairs": "EmojiPairs",
    "tll_jax.data.faces.DlibFaces": "DlibFaces",
    "tll_jax.data.folder.ClassFolder": "ClassFolder",
    "tll_jax.data.folder.ImageFolder": "ImageFolder",
    "tll_jax.data.folder.ImagesOfPairs": "ImagesOfPairs",
    "tll_jax.data.geometry.CenterCrop": "CenterCrop",
    "tll_jax.data.geometry.Pad": "Pad",
    "tll_jax.data.geometry.RandomResizedCrop": "RandomResizedCrop",
    "tll_jax.data.geometry.Resize": "Resize",
    "tll_jax.data.pair_folders.MatchingFolders": "MatchingFolders",
    "tll_jax.data.pair_folders.PairsFromTable": "PairsFromTable",
    "tll_jax.data.splits.Split": "Split",
    "tll_jax.data.tfds_sources.TfdsImages": "TfdsImages",
    "tll_jax.data.tfds_sources.TfdsPairs": "TfdsPairs",
    "tll_jax.data.totally_looks_like.TotallyLooksLike": "TotallyLooksLike",
    "tll_jax.evaluation.adapter.Adapter": "Adapter",
    "tll_jax.evaluation.bag_of_words.BagOfWords": "BagOfWords",
    "tll_jax.evaluation.baselines.ColorHistogram": "ColorHistogram",
    "tll_jax.evaluation.baselines.Hog": "Hog",
    "tll_jax.evaluation.baselines.Pixels": "Pixels",
    "tll_jax.evaluation.ensemble.Ensemble": "Ensemble",
    "tll_jax.evaluation.frozen_features.FrozenFeatures": "FrozenFeatures",
    "tll_jax.evaluation.local_features.Sift": "Sift",
    "tll_jax.evaluation.local_features.Surf": "Surf",
    "tll_jax.evaluation.local_scaling.LocalScaling": "LocalScaling",
    "tll_jax.evaluation.lpips.Lpips": "Lpips",
    "tll_jax.evaluation.metric_learning.LinearMap": "LinearMap",
    "tll_jax.evaluation.metric_learning.MaximumMargin": "MaximumMargin",
    "tll_jax.evaluation.metric_learning.PrincipalComponents": "PrincipalComponents",
    "tll_jax.evaluation.metric_learning.RelevantComponents": "RelevantComponents",
    "tll_jax.evaluation.mirrored.Mirrored": "Mirrored",
    "tll_jax.models.alexnet_vgg.AlexNet": "AlexNet",
    "tll_jax.models.alexnet_vgg.Vgg16": "Vgg16",
    "tll_jax.models.efficientnet_lite.EfficientNetLite0": "EfficientNetLite0",
    "tll_jax.models.efficientnet_lite.EfficientNetLite2": "EfficientNetLite2",
    "tll_jax.models.heads.Classifier": "Classifier",
    "tll_jax.models.heads.Diagonal": "Diagonal",
    "tll_jax.models.heads.Identity": "Identity",
    "tll_jax.models.heads.Projection": "Projection",
    "tll_jax.models.heads.Projector": "Projector",
    "tll_jax.models.heads.RectifiedProjection": "RectifiedProjection",
    "tll_jax.models.heads.SpatialProjection": "SpatialProjection",
    "tll_jax.models.mobilenet.MobileNetV2": "MobileNetV2",
    "tll_jax.models.resnet.ResNet": "ResNet",
    "tll_jax.models.weights.AlexNetLpips": "AlexNetLpips",
    "tll_jax.models.weights.EfficientNetLite0ImageNet": "EfficientNetLite0ImageNet",
    "tll_jax.models.weights.EfficientNetLite2ImageNet": "EfficientNetLite2ImageNet",
    "tll_jax.models.weights.Vgg16Lpips": "Vgg16Lpips",
    "tll_jax.models.weights.WeightFile": "WeightFile",
    "tll_jax.objectives.barlow_twins.BarlowTwins": "BarlowTwins",
    "tll_jax.objectives.classification.Classify": "Classify",
    "tll_jax.objectives.contrastive.Contrastive": "Contrastive",
    "tll_jax.objectives.info_nce.InfoNce": "InfoNce",
    "tll_jax.objectives.multi_similarity.MultiSimilarity": "MultiSimilarity",
    "tll_jax.objectives.simclr.SimClr": "SimClr",
    "tll_jax.objectives.triplet.Triplet": "Triplet",
    "tll_jax.objectives.vicreg.VicReg": "VicReg",
    "tll_jax.training.optimizers.AdamW": "AdamW",
    "tll_jax.training.optimizers.Lars": "Lars",
}
"""Tags by import paths, which 0.1.0 wrote in their place."""


class Fingerprint(str):
    """A hash of settings, twelve hexadecimal digits, that changes with every setting that can change a result.

    `former` is the hash by the rule of 0.1.0, of import paths and all fields; folders of stages that were finished
    under that rule are named by it. A fingerprint within other settings is hashed by the same rule as those.
    """

    former: str

    def __new__(cls, digits: str, former: str) -> "Fingerprint":
        made = super().__new__(cls, digits)
        made.former = former
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        # Copies and pickles are made by `__new__`.
        return str(self), self.former


def fingerprint(value: Any) -> Fingerprint:
    """The fingerprint of settings, or of mappings and lists of settings, strings and numbers."""
    now, former = (_digits(_canonical(value, by_former_rule=rule)) for rule in (False, True))
    return Fingerprint(now, former=former)


def _digits(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, allow_nan=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def to_json(settings: Any) -> Any:
    """Settings as JSON values; a dataclass becomes a dict of its fields, with its tag under "class"."""
    if _is_settings(settings):
        return {"class": tag(type(settings))} | {
            entry.name: to_json(getattr(settings, entry.name)) for entry in _fields(settings)
        }
    return _plain(settings, to_json)


def _canonical(value: Any, *, by_former_rule: bool) -> Any:
    """The JSON values that a fingerprint hashes."""
    if by_former_rule and isinstance(value, Fingerprint):
        return value.former
    if not _is_settings(value):
        return _plain(value, partial(_canonical, by_former_rule=by_former_rule))
    name = tag(type(value))
    found = {"class": _FORMER_PATHS.get(name, name) if by_former_rule else name}
    for entry in _fields(value):
        child = getattr(value, entry.name)
        counts = by_former_rule or entry.metadata.get("identity", True)
        if counts and not (entry.metadata.get("added") and child == _default(entry)):
            found[entry.metadata.get("first_name", entry.name)] = _canonical(child, by_former_rule=by_former_rule)
    return found


_FORMER_PATHS = {name: path for path, name in TAGS_OF_PATHS.items()}


def _is_settings(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(settings: Any) -> Iterator[dataclasses.Field[Any]]:
    return (entry for entry in dataclasses.fields(settings) if entry.init)


def _default(entry: dataclasses.Field[Any]) -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _plain(value: Any, convert: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): convert(child) for name, child in value.items()}
    if isinstance(value, tuple | list):
        return [convert(child) for child in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} cannot stand in settings: use numbers, strings, tuples, dataclasses")


def tag(kind: type) -> str:
    """The name of a settings class in JSON: its tag, or its import path if it is not of this package."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    if path not in _TAGS and path.startswith("tll_jax."):
        raise TypeError(f"{path} has no tag: add it to MODULES of tll_jax/serialize.py")
    return _TAGS.get(path, path)


_TAGS = {f"{module}.{CLASS_NAMES.get(name, name)}": name for name, module in MODULES.items()}


def with_tags(saved: Any) -> Any:
    """Settings in JSON of any version, with classes named by this version's tags."""
    if isinstance(saved, Mapping):
        return {
            name: TAGS_OF_PATHS.get(child, child) if name == "class" and isinstance(child, str) else with_tags(child)
            for name, child in saved.items()
        }
    return [with_tags(child) for child in saved] if isinstance(saved, tuple | list) else saved


def from_json(value: Any, *, trusted: Collection[str] = ()) -> Any:
    """Constructs settings from JSON of this or an earlier version; lists become tuples.

    Only dataclasses of this package, and of packages that the caller trusts, are constructed, so reading a settings
    file runs no other code.

    Args:
      trusted: names of packages, or of imported modules, whose dataclasses may be constructed.

    Raises:
      InvalidValue: a class of another package or not in this version of this one, a field that the class does not
        have, or one that it needs and that is missing.
    """
    if isinstance(value, list):
        return tuple(from_json(child, trusted=trusted) for child in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(child, trusted=trusted) for name, child in value.items() if name != "class"}
    if "class" not in value:
        return fields
    kind = _class_of(value["class"], trusted)
    present = first_names(kind)
    fields = {present.get(name, name): child for name, child in fields.items()}
    known = [entry.name for entry in _fields(kind)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise InvalidValue(f"{kind.__name__} has no field {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise InvalidValue(f"settings of a {kind.__name__} are not whole: {error}") from error


def _class_of(name: Any, trusted: Collection[str]) -> Any:
    name = TAGS_OF_PATHS.get(name, name) if isinstance(name, str) else name
    if name in MODULES:
        module_name, class_name = MODULES[name], CLASS_NAMES.get(name, name)
    else:
        module_name, _, class_name = str(name).rpartition(".")
        package = module_name.split(".")[0]
        if package == "tll_jax":
            raise InvalidValue(f"settings name {name!r}, which is not a settings class of this version of tll_jax")
        if not package or package not in trusted:
            raise InvalidValue(
                f"settings name the class {name!r}, and only settings classes of tll_jax are read; if it is yours, use "
                f"the run in Python: tll_jax.load(RUN, trusted=({package or 'PACKAGE'!r},))"
            )
    try:
        kind = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise InvalidValue(f"settings name {name!r}, and {module_name} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InvalidValue(f"settings name {name!r}, which is not a dataclass")
    return kind
