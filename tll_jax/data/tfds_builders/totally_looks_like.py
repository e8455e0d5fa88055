"""The Totally Looks Like pairs as a TFDS data set; importing this module registers it."""

import io
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tll_jax.data.pairs import Crop, Pairs
from tll_jax.data.tfds_builders import check_fraction_of_broken
from tll_jax.data.totally_looks_like import TotallyLooksLike

NAME = "totally_looks_like"
DESCRIPTION = """Pairs of pictures that people found to look alike (Totally Looks Like, 6,016 pairs, or a part of
them). For research only: the pictures are their owners'."""
CITATION = """@inproceedings{rosenfeld2018totally,
  title = {Totally Looks Like - How Humans Compare, Compared to Machines},
  author = {Rosenfeld, Amir and Solbach, Markus D. and Tsotsos, John K.},
  booktitle = {Asian Conference on Computer Vision},
  year = {2018},
}"""


class TotallyLooksLikeBuilder(tfds.core.GeneratorBasedBuilder):
    """Builder of one split, "train", in the order of the source.

    `source` is a folder or zip in any layout supported by `TotallyLooksLike`; by default TFDS's folder of manual
    downloads is searched. Files are copied byte for byte. Halves of joint images are stored as PNG; `left_content` and
    `right_content` are their content hashes in the source ("" for whole files).
    """

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """Put the pairs into manual_dir: left/ and right/ with equal names, joint images,
    or train.csv beside left/ and right/."""

    def __init__(self, *, source: str | None = None, **settings: Any) -> None:
        self.source = source
        super().__init__(**settings)
        # TFDS unpickles a builder by calling `__init__` with this state.
        self._original_state["source"] = source

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "left": tfds.features.Image(),
                    "right": tfds.features.Image(),
                    "left_content": tfds.features.Text(),
                    "right_content": tfds.features.Text(),
                    "group": tfds.features.Scalar(np.int32),
                }
            ),
            disable_shuffling=True,
            homepage="https://arxiv.org/abs/1803.01485",
            citation=CITATION,
            license="For research only.",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = self.source or str(dl_manager.manual_dir)
        # Broken pairs are counted below instead, so that the report lists all of them.
        pairs = TotallyLooksLike(path=source, max_broken_fraction=1.0).open()
        total = len(pairs) + len(pairs.skipped)
        check_fraction_of_broken(pairs.skipped, total, source)
        self.info.metadata.update(listed={"train": total}, broken=[list(item) for item in pairs.skipped])
        return {"train": self._generate_examples(pairs)}

    def _generate_examples(self, pairs: Pairs) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, entry in enumerate(pairs.entries):
            # File names may contain bytes that are not UTF-8.
            identity = entry.id.encode("utf-8", "surrogateescape")
            example: dict[str, Any] = {"id": identity, "group": int(pairs.groups[index])}
            sides = zip(("left", "right"), (entry.left, entry.right), pairs.hashes[index], strict=True)
            for side, crop, content in sides:
                example[side] = io.BytesIO(_encoded(pairs, crop))
                example[f"{side}_content"] = "" if crop.columns is None else content
            yield index, example


def _encoded(pairs: Pairs, crop: Crop) -> bytes:
    if crop.columns is None:
        return pairs.archive.read(crop.name)
    _, encoded = cv2.imencode(".png", cv2.cvtColor(crop.read(pairs.archive), cv2.COLOR_RGB2BGR))
    return encoded.tobytes()
