"""Saliency maps of pairs of look-alikes."""

import numpy as np

from tests.gallery.find_results import pair, picture
from tll_jax.gallery.maps import METHODS, with_maps
from tll_jax.saliency.side_by_side import ExplainedPair


def test_every_pair_that_can_be_read_gets_a_page(tmp_path):
    asked_for = []

    def explainer(lefts, rights, names, request):
        asked_for.append((len(lefts), tuple(request.methods)))
        return [
            ExplainedPair(
                names=pair_names,
                left=left,
                right=right,
                cosine=0.5,
                target="cosine",
                layer="stage2",
                descriptions={"occlusion": "words"},
                maps={"occlusion": (np.ones((16, 16), np.float32),) * 2},
                decomposition=None,
            )
            for left, right, pair_names in zip(lefts, rights, names, strict=True)
        ]

    def read(asked):
        if asked.path == "gone.jpg":
            raise FileNotFoundError("gone")
        return np.full((16, 16, 3), len(asked.path), np.uint8)

    pairs = [
        pair(picture("a.jpg", "a" * 32), picture("caf\udce9 <b>.jpg", "b" * 32)),
        pair(picture("a.jpg", "a" * 32), picture("gone.jpg", "c" * 32)),
    ]
    told = []
    found = with_maps(
        pairs, tmp_path, explainer=explainer, read=read, progress=lambda done, total: told.append((done, total))
    )
    assert asked_for == [(1, METHODS)]
    assert told == [(2, 2)]
    assert found[1] == pairs[1]
    text = (tmp_path / found[0].maps).read_text()
    assert "<b>.jpg" not in text
    assert "caf\\udce9" in text
