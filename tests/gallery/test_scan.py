import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tll_jax.errors import FileProblem, InvalidValue, MissingFile
from tll_jax.gallery import scan as scanning
from tll_jax.gallery.scan import ScanOptions, roots_of, scan

ROOT = Path(__file__).parents[2]


def make(folder, *names):
    for name in names:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff" + os.fsencode(name))
    return folder


def listed(place, **options):
    found = scan(roots_of([str(place)]), ScanOptions(**options))
    return [file.path for file in found.files]


def test_what_programs_put_beside_pictures_and_what_is_excluded_is_left_out(tmp_path):
    make(
        tmp_path, "a.jpg", "sub/b.PNG", ".git/c.jpg", "@eaDir/d.jpg", "x/node_modules/e.jpg", "__MACOSX/f.jpg", "g.txt"
    )
    make(tmp_path, ".hidden/h.jpg", "old/i.jpg", "tmp-1.jpg")
    assert listed(tmp_path) == ["a.jpg", "old/i.jpg", "sub/b.PNG", "tmp-1.jpg"]
    assert listed(tmp_path, exclude=("old", "tmp-*")) == ["a.jpg", "sub/b.PNG"]
    assert listed(tmp_path, exclude=("sub/*.PNG", "old/")) == ["a.jpg", "tmp-1.jpg"]
    assert ".hidden/h.jpg" in listed(tmp_path, hidden=True)
    assert ".git/c.jpg" not in listed(tmp_path, hidden=True)


def test_hostile_names_and_names_that_are_no_text_are_listed_as_they_are(tmp_path):
    names = ["<b>&.jpg", "50%#1.jpg", 'it\'s "so".jpg', "line\nbreak.jpg", "caf\udce9.jpg", " .jpg", "$HOME.jpg"]
    make(tmp_path, *names)
    assert sorted(listed(tmp_path)) == sorted(names)


def test_what_is_not_read_is_counted_by_suffix_with_what_mends_it(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "b.heic", "c.HEIC", "d.cr2", "e.jxl", "f.mov")
    monkeypatch.setattr(scanning, "readers", frozenset)
    found = scan(roots_of([str(tmp_path)]), ScanOptions())
    assert found.skipped == {".heic": 2, ".cr2": 1, ".jxl": 1}
    assert scanning.mend(".heic") == "pip install 'tll_jax[heic]'"
    assert scanning.mend(".cr2") == "pip install 'tll_jax[raw]'"
    assert scanning.mend(".jxl") == "convert them to JPEG or PNG"
    monkeypatch.setattr(scanning, "readers", lambda: frozenset(("heic", "raw")))
    assert listed(tmp_path) == ["a.jpg", "b.heic", "c.HEIC", "d.cr2"]


def test_files_without_a_suffix_are_pictures_by_their_first_bytes(tmp_path):
    make(tmp_path, "picture")
    (tmp_path / "notes").write_text("no picture")
    (tmp_path / "empty").touch()
    assert listed(tmp_path) == ["picture"]


def test_a_file_of_several_names_counts_once_under_the_first_that_is_no_link(tmp_path):
    make(tmp_path, "m/one.jpg", "other.jpg")
    os.link(tmp_path / "m" / "one.jpg", tmp_path / "z.jpg")
    (tmp_path / "a.jpg").symlink_to(tmp_path / "m" / "one.jpg")
    found = scan(roots_of([str(tmp_path)]), ScanOptions())
    assert [file.path for file in found.files] == ["m/one.jpg", "other.jpg"]
    assert [file.path for file in found.aliases[found.files[0]]] == ["z.jpg", "a.jpg"]
    skipped = scan(roots_of([str(tmp_path)]), ScanOptions(links="skip"))
    assert [file.path for file in skipped.aliases[skipped.files[0]]] == ["z.jpg"]


def test_loops_of_links_and_second_ways_to_a_folder_end(tmp_path):
    make(tmp_path, "in/a.jpg", "other/b.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / "aa").symlink_to(tmp_path / "other")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert listed(tmp_path) == ["in/a.jpg", "other/b.jpg"]
    both = scan(roots_of([str(tmp_path), str(tmp_path / "in")]), ScanOptions())
    assert [file.path for file in both.files] == ["in/a.jpg", "other/b.jpg"]


def test_zips_are_listed_without_names_that_point_out_of_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("a.jpg", "sub/b.png", "../out.jpg", "__MACOSX/a.jpg", ".x/c.jpg", "t.txt", "d.jxl"):
            archive.writestr(name, name)
    found = scan(roots_of([str(tmp_path / "p.zip")]), ScanOptions())
    assert [file.path for file in found.files] == ["a.jpg", "sub/b.png"]
    assert found.left_out == [(0, "../out.jpg", "the name points out of the zip")]
    assert found.skipped == {".jxl": 1}


def test_places_that_cannot_be_scanned_are_named(tmp_path):
    with pytest.raises(MissingFile, match="nowhere is not there"):
        roots_of([str(tmp_path / "nowhere")])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidValue, match="pipe is no regular file"):
        roots_of([str(tmp_path / "pipe")])
    make(tmp_path / "f", "a.jpg")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(InvalidValue, match=r"cut\.zip is not a complete zip file .*: download or copy it again"):
        scan(roots_of([str(tmp_path / "cut.zip")]), ScanOptions())
    roots = roots_of([str(tmp_path / "f")])
    os.rename(tmp_path / "f", tmp_path / "g")
    with pytest.raises(FileProblem, match="f cannot be listed"):
        scan(roots, ScanOptions())


def test_facts_change_with_what_a_result_depends_on(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg")

    def facts():
        return scan(roots_of([str(tmp_path)]), ScanOptions()).facts()

    seen = [facts(), facts()]
    assert seen[0] == seen[1]
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    seen.append(facts())
    os.rename(tmp_path / "b.jpg", tmp_path / "c.jpg")
    seen.append(facts())
    make(tmp_path, "d.jxl")
    seen.append(facts())
    assert len(set(seen)) == 4


def test_the_command_imports_what_computes_only_when_it_does():
    code = "import sys, tll_jax.cli.find; print(*{'jax', 'lancedb', 'pyarrow', 'cv2'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
