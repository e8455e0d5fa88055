"""Detection of every layout in a folder and in a zip, and refusal of unknown ones."""

import zipfile

import pytest
from PIL import Image

from tll_jax.data.emoji import ARCHIVE, EmojiPairs
from tll_jax.data.faces import DlibFaces
from tll_jax.data.folder import ClassFolder, ImageFolder
from tll_jax.data.pair_folders import MatchingFolders, PairsFromTable
from tll_jax.data.recognize import recognize, recognize_pairs
from tll_jax.data.totally_looks_like import TotallyLooksLike

DOT, JOINT, PHOTO = (1, 1), (410, 300), (640, 480)


def totally_looks_like(**options):
    return TotallyLooksLike(faces=DlibFaces(), **options)


def table(**options):
    return PairsFromTable(faces=DlibFaces(), **options)


def matching(**options):
    return MatchingFolders(faces=DlibFaces(), **options)


LAYOUTS = {
    "the CSV edition": (
        ["train/left/aaa.jpg", "train/right/bbb.jpg"],
        {"train/train.csv": "left,right\naaa,bbb\n"},
        totally_looks_like,
    ),
    "numbered": (["tll/left/00001.jpg", "tll/right/00001.jpg"], {}, totally_looks_like),
    "one numbered side alone": (["left/00001.jpg", "left/00002.jpg"], {}, totally_looks_like),
    "a table": (["a.jpg", "in/b.jpg"], {"pairs.csv": "left,right\na.jpg,in/b.jpg\n"}, table),
    "a table called train.csv": (
        ["left/a.jpg", "right/b.jpg"],
        {"train.csv": "id,left,right\n1,left/a.jpg,right/b.jpg\n", "labels.csv": "id,label\n1,2\n"},
        lambda path: table(path=path, table="train.csv"),
    ),
    "left and right": (
        ["set/left/a.jpg", "set/right/b.jpg", "thumbs/a.jpg"],
        {},
        lambda path: matching(path=path, left="set/left", right="set/right"),
    ),
    "two folders of equal names": (
        ["photo/a.jpg", "photo/b.jpg", "sketch/a.png", "sketch/b.png"],
        {},
        lambda path: matching(path=path, left="photo", right="sketch"),
    ),
    "two classes": (["cat/a.jpg", "cat/b.jpg", "dog/a.jpg"], {}, ClassFolder),
    "classes of a training and a validation set": (
        ["x/train/cat/a.jpg", "x/train/dog/b.jpg", "x/train/dog/c.jpg", "x/val/cat/d.jpg", "x/val/dog/e.jpg"],
        {"noise.csv": "path,label\n"},
        lambda path: ClassFolder(path=path, subfolder="x/train"),
    ),
    "numbered classes": (["0/0001.jpg", "1/0001.jpg", "2/0001.jpg"], {}, ClassFolder),
    "a flat folder": (["a.jpg", "b.jpg"], {"notes.txt": "none"}, ImageFolder),
    "a flat folder with a few aside": (["a.jpg", "b.jpg", "c.jpg", "x/d.jpg", "y/e.jpg"], {}, ImageFolder),
    "a folder in a folder": (["photos/a.jpg", "photos/b.jpg"], {}, ImageFolder),
    "numbered dots": (["0001.png", "0002.png"], {}, ImageFolder),
}


def write(folder, images, texts, size=DOT):
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)
    for name, content in texts.items():
        (folder / name).write_text(content)


def pack(folder, path):
    with zipfile.ZipFile(path, "w") as packed:
        for name in sorted(folder.rglob("*.*")):
            packed.write(name, name.relative_to(folder))
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognized_in_a_folder_and_in_a_zip(layout, tmp_path):
    images, texts, expected = LAYOUTS[layout]
    write(tmp_path / "set", images, texts)
    for path in (str(tmp_path / "set"), pack(tmp_path / "set", tmp_path / "set.zip")):
        assert recognize(path) == expected(path=path)


@pytest.mark.parametrize(("size", "kind"), [(JOINT, TotallyLooksLike), (PHOTO, ImageFolder)])
def test_numbered_pictures_are_joint_pairs_where_they_are_as_wide_as_two(size, kind, tmp_path):
    write(tmp_path, ["0002.jpg", "0003.jpg"], {"0001.jpg": "broken"}, size)
    assert type(recognize(str(tmp_path))) is kind


def test_emoji_are_recognized_by_name_and_their_zip_by_its_folders():
    assert recognize("emoji") == EmojiPairs()
    assert len(recognize(str(ARCHIVE)).open()) == 1610


def test_a_path_to_a_table_is_recognized_and_keeps_its_variables(tmp_path, monkeypatch):
    write(tmp_path, ["a.jpg", "b.jpg"], {"mine.csv": "left,right\na.jpg,b.jpg\n"})
    monkeypatch.setenv("MINE", str(tmp_path))
    settings = recognize("$MINE/mine.csv")
    assert settings == table(path="$MINE", table="mine.csv")
    assert settings.open().ids == ["a.jpg|b.jpg"]


def test_an_unknown_layout_is_refused_with_the_supported_layouts_and_the_contents(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data at"):
        recognize(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(
        ValueError, match=r"Looked for: Totally Looks Like .*class folders.*It holds 1 files, such as notes"
    ):
        recognize(str(tmp_path))
    with pytest.raises(ValueError, match=r"notes\.txt is not a complete zip file"):
        recognize(str(tmp_path / "notes.txt"))


def test_single_images_are_no_pairs_to_evaluate_on(tmp_path):
    write(tmp_path, ["a.jpg", "b.jpg"], {})
    with pytest.raises(ValueError, match=r"holds single images, ImageFolder\(.*and no pairs"):
        recognize_pairs(str(tmp_path))
