"""Base class of single-image sources that tolerate broken images."""

import logging
import threading
from typing import Any

from tll_jax.data.archive import named
from tll_jax.data.imaging import BrokenImage
from tll_jax.errors import InvalidValue
from tll_jax.typing import LabeledImage, Skipped

logger = logging.getLogger(__name__)


class SkippingSource:
    """Random access to images, each read on access.

    An unreadable image is counted in `skipped`, reported in a warning once, and replaced by the next readable one, the
    same in every run. ValueError, with the images' names, is raised on the access after which more than
    `max_broken_fraction` of all images are known to be broken.
    """

    num_classes: int

    def __init__(self, where: str, *, max_broken_fraction: float) -> None:
        self.where = where
        self.max_broken_fraction = max_broken_fraction
        self.skipped: list[Skipped] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, position: int) -> str:
        """Name of an image, for messages."""
        raise NotImplementedError

    def read(self, position: int) -> LabeledImage:
        """Reads one image; raises BrokenImage or OSError."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> LabeledImage:
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            try:
                return self.read(position)
            except (BrokenImage, OSError) as error:
                name = self.name(position)
                self._skip(name, str(error).removeprefix(f"{name}: "))
            if len(self.skipped) > self.max_broken_fraction * len(self):
                break
        raise InvalidValue(
            f"{len(self.skipped)} of {len(self)} images in {self.where} cannot be read, more than the "
            f"{self.max_broken_fraction:.0%} allowed: {named(self.skipped)}. Is the data whole? "
            "Download or extract it again"
        )

    def _skip(self, name: str, reason: str) -> None:
        with self._lock:
            if all(item.name != name for item in self.skipped):
                self.skipped.append(Skipped(name, reason))
                logger.warning("%s is skipped: %s", name, reason)
