"""Weight files are read as PyTorch reads them, and nothing in them is run."""

import json
import os
import pickle
import struct
import tracemalloc
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
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, shape, strides):
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
def test_other_files_are_refused_by_name(tmp_path, content):
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


def write_views(path, count):
    """`count` tensors that all are the same megabyte."""
    value = tensor_pickle((2,), (1,), numel=6)[len(b"\x80\x02}X\x06\x00\x00\x00weight") : -2]
    value = value.replace(b"K\x06t", b"J" + struct.pack("<i", 2**18) + b"t").replace(b"K\x02t", b"J\0\0\4\0t", 1)
    names = (b"X" + struct.pack("<I", len(name)) + name for name in (b"t%d" % index for index in range(count)))
    data = b"\x80\x02}(" + b"".join(name + value for name in names) + b"u."
    with zipfile.ZipFile(write_zip(path, data), "a") as archive:
        archive.writestr("archive/data/0", np.arange(2**18, dtype="<f4").tobytes())
    return path


def test_tensors_of_one_storage_share_memory(tmp_path):
    path = write_views(tmp_path / "a.pth", 300)
    tracemalloc.start()
    found = read_state_dict(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 300
    assert found["t299"].shape == (2**18,)
    assert found["t299"][-1] == 2**18 - 1
    assert peak < 8 * 2**20, "a copy each would be 300 MB"


def nested(start, step, depth):
    """`depth` containers, each of which holds the one before it `step` says how often."""
    data = b"\x80\x02" + start + b"q\x00"
    for level in range(1, depth):
        data += step(b"h" + bytes([level - 1])) + b"q" + bytes([level])
    return data + b"."


HOSTILE = {
    "a place in the memo": b"\x80\x02Nr\xff\xff\xff\x1f.",
    "lists in lists": nested(b"]", lambda inner: b"](" + inner * 10 + b"e", 12),
    "tuples in tuples": nested(b")", lambda inner: inner * 2 + b"\x86", 40),
    "doubled": b"\x80\x02)" + b"2\x86" * 40 + b".",
    "a list in itself": b"\x80\x02]q\x00" + b"(" + b"h\x00" * 50 + b"e" + b"(h\x00h\x00e" * 20 + b".",
    "as a key": nested(b")", lambda inner: inner * 2 + b"\x86", 40)[:-1] + b"}h\x27Ns.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "a number of storages": b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n"
    + nested(b"]", lambda inner: b"](" + inner * 10 + b"e", 5)[2:-1]
    + b"X\3\0\0\0cpuK\x06tQ.",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("suffix", ["pth", "ckpt"])
def test_small_pickles_that_need_much_memory_are_refused_before_allocation(tmp_path, kind, suffix):
    path = tmp_path / f"evil.{suffix}"
    if suffix == "pth":
        write_zip(path, HOSTILE[kind])
    else:
        path.write_bytes(HOSTILE[kind])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"evil\..* cannot be read as a weight file"):
        read_state_dict(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


@pytest.mark.parametrize(
    ("method", "count", "reason"),
    [
        (zipfile.ZIP_DEFLATED, 2**21, r"unpacks to 8,388,608 bytes, where [\d,]* are allowed"),
        (zipfile.ZIP_BZIP2, 6, "packed in a way that torch.save does not"),
    ],
)
def test_data_that_unpacks_to_much_more_than_the_file_is_refused(tmp_path, method, count, reason):
    data = tensor_pickle((6,), (1,)).replace(b"K\x06tQ", b"J" + struct.pack("<i", count) + b"tQ")
    with zipfile.ZipFile(write_zip(tmp_path / "a.pth", data), "a", method) as archive:
        archive.writestr("archive/data/0", bytes(4 * count))
    with pytest.raises(ValueError, match=rf"a\.pth.*{reason}"):
        read_state_dict(tmp_path / "a.pth")


def test_a_pickle_larger_than_its_stated_size_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * 2**22)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\1\2")
    data[place + 24 : place + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="Bad CRC"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "C64"])
def test_a_type_of_safetensors_that_is_not_read_is_named(tmp_path, kind):
    header = json.dumps({"head": {"dtype": kind, "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=rf"a\.safetensors holds 'head' of the type {kind}.* float32"):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "ComplexFloatStorage", "uint16", "QInt8Storage"])
def test_a_type_of_torch_that_is_not_read_is_named(tmp_path, name):
    path = write_zip(
        tmp_path / "a.pth", b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\nctorch\n" + name.encode() + b"\n\x86."
    )
    with pytest.raises(ValueError, match=rf"a\.pth.*numbers of the type {name}, .*save it as float32"):
        read_state_dict(path)


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
