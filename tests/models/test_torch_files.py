"""Weight files are read as PyTorch reads them, and nothing in them is run."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models import references
from tll_jax.models.torch_files import read_state_dict


class Command:
    """Runs a shell command when unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write_zip(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


def legacy_header():
    values = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(value, protocol=2) for value in values)


def tensor_pickle(shape, strides, numel=6):
    """The pickle of {"weight": a float tensor}, put together by hand as torch writes it."""

    def numbers(values):
        return b"(" + b"".join(b"K" + bytes([value]) for value in values) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    storage += b"K" + bytes([numel]) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(shape) + numbers(strides)
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x06\x00\x00\x00weight" + tensor + b"s."


def write_tensor(path, shape, strides):
    with zipfile.ZipFile(write_zip(path, tensor_pickle(shape, strides)), "a") as archive:
        archive.writestr("archive/data/0", np.arange(6, dtype="<f4").tobytes())
    return path


def test_shape_and_strides_are_those_of_the_file(tmp_path):
    plain = read_state_dict(write_tensor(tmp_path / "a.pth", (2, 3), (3, 1)))
    turned = read_state_dict(write_tensor(tmp_path / "b.pth", (3, 2), (1, 3)))
    assert plain["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert turned["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(("shape", "strides"), [((2, 4), (4, 1)), ((200, 200), (0, 0)), ((2, 2), (200, 1))])
def test_a_tensor_that_reaches_past_its_numbers_is_refused(tmp_path, shape, strides):
    with pytest.raises(ValueError, match=r"a\.pth.*shape .* past its 6 numbers"):
        read_state_dict(write_tensor(tmp_path / "a.pth", shape, strides))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_a_command_is_refused_and_the_command_not_run(tmp_path, legacy):
    data = pickle.dumps({"weight": Command(f"touch {tmp_path}/ran")}, protocol=2)
    path = tmp_path / "evil.pth"
    if legacy:
        path.write_bytes(legacy_header() + data)
    else:
        write_zip(path, data)
    with pytest.raises(ValueError, match=r"evil\.pth.*names (posix|nt)\.system, .*not run; .*safetensors"):
        read_state_dict(path)
    pickle.loads(data)
    assert (tmp_path / "ran").exists(), "the command does run where nothing refuses it"


@pytest.mark.parametrize("content", [b"", b"\x80\x02\x8a\x0a", b"PK\x03\x04 and no more", b"hello, I am text"])
def test_what_is_no_weight_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.pth"):
        read_state_dict(tmp_path / "odd.pth")


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"model": {}}])
def test_a_file_without_tensors_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_state_dict(write_zip(tmp_path / "a.pth", pickle.dumps(value, protocol=2)))


@pytest.mark.parametrize("protocol", [3, 4])
def test_nested_numpy_arrays_are_read_by_their_joined_names(tmp_path, protocol):
    arrays = {
        "net": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "turned": np.arange(6.0).reshape(2, 3).T},
        "count": np.array([1, 2], ">i4"),
    }
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(arrays | {"step": 3}, protocol=protocol))
    found = read_state_dict(tmp_path / "a.ckpt")
    assert found.keys() == {"net.kernel", "net.turned", "count"}
    assert found["net.kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["net.turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["count"].tolist() == [1, 2]


@pytest.mark.parametrize("value", [Command("true"), np.array([Command("true")], object), np.array(["text"])])
def test_a_pickle_of_more_than_numbers_is_refused(tmp_path, value):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps({"weight": value}, protocol=3))
    with pytest.raises(ValueError, match=r"a\.ckpt.*(names (posix|nt)\.system|holds an array of type '(O|U))"):
        read_state_dict(tmp_path / "a.ckpt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth is not there"):
        read_state_dict(tmp_path / "gone.pth")


CHECKPOINTS = [references.FOLDER / "checkpoint.pth", references.FOLDER / "checkpoint_legacy.pth"]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_every_tensor_is_what_torch_saved(path):
    expected = references.load("checkpoint")
    found = read_state_dict(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].astype(np.float64).tolist() == value
    assert found["count"].dtype == np.int64
    assert found["empty"].shape == (0, 3)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_a_truncated_file_is_refused(tmp_path, path):
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.9, 0.999):
        (tmp_path / "a.pth").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"a\.pth"):
            read_state_dict(tmp_path / "a.pth")


def test_safetensors_are_read_and_truncated_ones_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"module.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}, path)
    assert read_state_dict(path)["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"a\.safetensors.*truncated"):
        read_state_dict(path)
