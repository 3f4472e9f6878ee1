"""The file of cases keeps every bit and every dtype, and notices whatever happened to it."""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from parity import cases_file
from parity.cases import Case
from parity.cases_file import Answers, Recording, digest, load, pack, save, unpack
from parity.errors import PortError, UsageError
from tests.parity import linear

DTYPES = [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
RECORDING = Recording(
    {"reference": "reference.py", "steps": 3, "nested": [1, None, True, "é\n/"]},
    tuple((case, {"expected": {"z": np.ones(2), "a": np.zeros((), np.int32)}}) for case in linear.cases()),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_arrays_come_back_bit_by_bit_in_their_dtype(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    found = unpack(pack({"a": array}))["a"]
    assert linear.same(found, array)
    assert found.flags.writeable


trees = st.recursive(
    stn.arrays(np.float32, stn.array_shapes(min_dims=0, max_dims=3, min_side=0))
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_any_tree_comes_back_with_its_order_and_packs_to_the_same_bytes(tree: Any) -> None:
    try:
        content = pack(tree)
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    found = unpack(content)
    assert pack(found) == content
    assert keys(found) == keys(tree)


def keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return [(key, keys(value)) for key, value in tree.items()]
    return [keys(value) for value in tree] if isinstance(tree, list) else repr(tree)


def test_a_file_is_read_as_it_was_written_and_by_numpy_too(tmp_path: Path) -> None:
    path = tmp_path / "exam.npz"
    save(path, RECORDING)
    found = load(path, Recording)
    assert found.about == RECORDING.about
    for (case, answers), (expected, theirs) in zip(found.asked, RECORDING.asked, strict=True):
        assert digest(case) == digest(expected)
        assert (case.name, case.call, case.train, case.seed) == (expected.name, expected.call, False, 3)
        assert list(answers["expected"]) == list(theirs["expected"])
    assert len(np.load(path, allow_pickle=False).files) > 3
    save(tmp_path / "again.npz", found)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_every_flipped_bit_and_every_truncation_is_noticed() -> None:
    content = pack({"a": np.arange(3, dtype=np.float32), "b": ["x"]})
    for at in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            with pytest.raises(ValueError, match="SHA-256"):
                unpack(bytes(flipped))
        with pytest.raises(ValueError, match="SHA-256"):
            unpack(content[:at])
    for longer in (content + b"\0", b"\0" + content, content + content):
        with pytest.raises(ValueError, match="SHA-256"):
            unpack(longer)


def signed(archive: bytes) -> bytes:
    """A file that says of itself that it is whole."""
    return archive[:-64] + hashlib.sha256(archive[:-64]).hexdigest().encode()


HOSTILE = {
    "bomb": "holds compressed members",
    "objects": "not an array of numbers",
    "size": "not an array of numbers of the size that it names",
    "often": "holds more than",
    "nothing": "no item named 'contents.npy'",
    "no zip": "File is not a zip file",
    "deep": "not a file of cases",
}


@pytest.mark.parametrize(("hostile", "line"), HOSTILE.items())
def test_a_hostile_file_is_refused_though_its_signature_fits(
    hostile: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases_file, "MOST_BYTES", 1 << 20)
    file = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    contents = {
        "bomb": npy(np.zeros(10_000_000, np.uint8)),
        "objects": npy(np.array([object()])),
        "size": header.getvalue(),
        "often": npy(np.frombuffer(b'["list", %s]' % b", ".join([b'["array", "big.npy", "uint8"]'] * 100), np.uint8)),
        "deep": npy(np.frombuffer(b"[" * 100_000, np.uint8)),
    }
    compression = zipfile.ZIP_DEFLATED if hostile == "bomb" else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("big.npy", npy(np.zeros(100_000, np.uint8)))
        if hostile in contents:
            archive.writestr("contents.npy", contents[hostile])
        archive.comment = b"0" * 64
    content = signed(b"x" * 100 + b"0" * 64 if hostile == "no zip" else file.getvalue())
    with pytest.raises(ValueError, match=line):
        unpack(content)


def npy(array: Any) -> bytes:
    """The array as a member of an `.npz`."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def test_what_cannot_be_kept_is_an_error() -> None:
    for tree in ({"a": np.array([object()])}, {"a": {1}}, {1: 2}, {"a": np.array(["x"])}):
        with pytest.raises(ValueError, match=r"cannot be kept|no string"):
            pack(tree)


def test_a_file_that_cannot_be_used_is_named_with_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "exam.npz"
    with pytest.raises(UsageError, match="no such file"):
        load(path, Recording)
    save(path, Answers({}, {}))
    with pytest.raises(UsageError, match="holds Answers, expected Recording"):
        load(path, Recording)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"exam\.npz: its SHA-256 is not that of its content"):
        load(path, Answers)
    with pytest.raises(OSError, match=r"cannot be written: No such file or directory: '.*none/exam\.npz'"):
        save(tmp_path / "none" / "exam.npz", RECORDING)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "exam.npz"
    save(path, Answers({"old": 1}, {}))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        save(path, RECORDING)
    assert load(path, Answers).about == {"old": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["exam.npz"]


def test_recorded_answers_answer_for_the_port(tmp_path: Path) -> None:
    asked, refused = linear.case("load"), linear.case("outputs")
    answers = Answers(
        {"port": "port.py"}, {digest(asked): {"state/a": np.ones(1)}, digest(refused): "outputs: no\nhint"}
    )
    save(tmp_path / "answers.npz", answers)
    found = load(tmp_path / "answers.npz", Answers)
    assert found.describe() == {"port": "port.py"}
    assert list(found.answer(asked)) == ["state/a"]
    with pytest.raises(PortError, match="outputs: no") as error:
        found.answer(refused)
    assert error.value.hint == "hint"
    with pytest.raises(PortError, match="another exam"):
        found.answer(Case("other", "load", {}))


def test_equal_cases_alone_have_equal_digests() -> None:
    case = linear.case("outputs")
    other = Case(case.name, case.call, {**case.state, "fc.bias": case.state["fc.bias"] + 1e-7}, case.batches, seed=3)
    assert digest(case) == digest(linear.case("outputs")) != digest(other)
