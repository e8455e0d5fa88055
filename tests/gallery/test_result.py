"""The JSON form of a result of `tll find`."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from tests.gallery.find_results import HOSTILE, LINKED, NOT_UTF8, pair, picture, result
from tests.gallery.schema import schema
from tll_jax.errors import DamagedFile, InvalidValue
from tll_jax.gallery.result import Run, from_json, read, to_json, write


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    written = result(pairs=(pair(LINKED, picture(NOT_UTF8)), *result().pairs))
    assert read(write(written, tmp_path)) == written


def test_a_name_that_is_not_utf8_is_written_as_text_and_as_its_bytes():
    content = to_json(result())
    right = content["pairs"][1]["right"]
    assert right["path"] == "caf\\udce9.jpg"
    assert right["path_base64"] == "Y2Fm6S5qcGc="
    assert "path_base64" not in content["pairs"][0]["right"]
    assert content["pairs"][0]["right"]["path"] == HOSTILE
    json.dumps(content).encode("utf-8", "strict")


def test_numbers_of_numpy_become_numbers_of_python():
    odd = pair(
        picture("a"), picture("b"), cosine=np.float32(0.5), left_rank=np.int64(3), one_in_is_bound=np.bool_(True)
    )
    run = Run(created="", kept=np.int32(1), embedded=2, renamed=0, seconds={"embed": np.float64(1)})
    content = to_json(result(pairs=(odd,), run=run))
    found = content["pairs"][0]
    kinds = [type(found["cosine"]), type(found["left_rank"]), type(found["one_in_is_bound"])]
    assert kinds == [float, int, bool]
    assert [type(content["run"]["kept"]), type(content["run"]["seconds"]["embed"])] == [int, float]
    with pytest.raises(TypeError):
        to_json(result(pairs=(dataclasses.replace(odd, left_rank=1.5),)))


def test_a_number_that_is_none_is_refused_with_its_place():
    with pytest.raises(InvalidValue, match=r"result.pairs\[0\].cosine is nan"):
        to_json(result(pairs=(pair(picture("a"), picture("b"), cosine=float("nan")),)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(format="tll-find/9"), "the format is 'tll-find/9'"),
        (lambda content: content["pairs"][0].update(kind="twin"), r"pairs\[0\].kind is 'twin'"),
        (lambda content: content["counts"].pop("images"), "counts has no 'images'"),
        (lambda content: content["pairs"][0].update(cosine="high"), r"pairs\[0\].cosine is 'high'"),
        (lambda content: content["broken"][0].update(path_base64="?"), r"broken\[0\].path_base64"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(tmp_path, change, words):
    content = to_json(result())
    change(content)
    with pytest.raises(InvalidValue, match=words):
        from_json(content)
    path = tmp_path / "find.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedFile, match="is no result of `tll find`"):
        read(path)


def test_the_schema_of_the_docs_is_that_of_the_values_and_a_result_keeps_to_it():
    documented = json.loads((Path(__file__).parents[2] / "docs" / "tll-find-1.schema.json").read_text())
    assert documented == schema(), "python tests/gallery/schema.py > docs/tll-find-1.schema.json"
    validator = jsonschema.Draft202012Validator(documented)
    validator.check_schema(documented)
    content = to_json(result(pairs=(pair(LINKED, picture(NOT_UTF8)), *result().pairs)))
    validator.validate(content)
    for break_it in (
        lambda one: one["pairs"][0].update(kind="twin"),
        lambda one: one["pairs"][0].pop("cosine"),
        lambda one: one["counts"].update(images=1.5),
        lambda one: one.update(extra=1),
        lambda one: one["pairs"][1]["reasons"]["strongest"][0].update(left=[0]),
    ):
        broken = json.loads(json.dumps(content))
        break_it(broken)
        assert not validator.is_valid(broken)
