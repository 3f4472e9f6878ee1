"""The data: found, verified, cached, and never believed when it is damaged."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from torchvision import datasets
from torchvision.transforms import ToTensor

from fmnist import data, synthetic
from fmnist.command import UnavailableError, UsageError
from fmnist.data import MD5, SHA256, Dataset, Split, load_dataset
from fmnist_jax.train import scan_batches

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = MD5


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of the source that a test may damage."""
    shutil.copytree(source / "FashionMNIST" / "raw", tmp_path / "mine" / "FashionMNIST" / "raw")
    return tmp_path / "mine"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fmnist-parity" / "FashionMNIST.bytes"


def test_the_arrays_are_torchvision_s(fashion_mnist: Dataset, folder: Path) -> None:
    for split, is_train in ((fashion_mnist.train, True), (fashion_mnist.test, False)):
        theirs = datasets.FashionMNIST(str(folder), train=is_train, download=True)
        assert np.array_equal(split.images, theirs.data.numpy())
        assert np.array_equal(split.labels, theirs.targets.numpy())


def test_sums_are_those_that_torchvision_checks() -> None:
    assert dict(datasets.FashionMNIST.resources) == MD5


def test_a_folder_of_gz_files_is_read_and_left_as_it_was(source: Path) -> None:
    before = sorted(source.rglob("*"))
    assert load_dataset(str(source)).sha256 == SHA256
    assert sorted(source.rglob("*")) == before


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_portal(path: Path) -> None:
    path.write_text("<html>Please log in to use this network.</html>")


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_portal, damage_empty])
@pytest.mark.parametrize("name", MD5)
def test_a_damaged_source_is_named_with_both_sums(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    path = folder / "FashionMNIST" / "raw" / name
    damage(path)
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(UsageError) as caught:
        load_dataset(str(folder))
    for part in (str(path), found, MD5[name]):
        assert part in str(caught.value)


def test_swapped_files_are_recognised(folder: Path) -> None:
    raw = folder / "FashionMNIST" / "raw"
    (raw / TRAIN_LABELS).rename(raw / "aside")
    (raw / TEST_LABELS).rename(raw / TRAIN_LABELS)
    (raw / "aside").rename(raw / TEST_LABELS)
    with pytest.raises(UsageError, match=f"{TRAIN_LABELS}: it is {TEST_LABELS} under a wrong name"):
        load_dataset(str(folder))


def test_a_gz_packed_anew_is_not_the_original(folder: Path) -> None:
    path = folder / "FashionMNIST" / "raw" / TEST_LABELS
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    with pytest.raises(UsageError, match=TEST_LABELS):
        load_dataset(str(folder))


@pytest.fixture
def unpacked(folder: Path) -> Path:
    """Only the files that torchvision unpacks, as some keep them."""
    for path in (folder / "FashionMNIST" / "raw").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return folder


def test_unpacked_files_are_read_by_the_same_sums(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_dataset(str(unpacked)).sha256 == SHA256
    monkeypatch.setenv("FMNIST_DATA", str(unpacked))
    assert data.find_folder() == unpacked
    assert datasets.FashionMNIST(str(unpacked)), "torchvision accepts them"
    raw = unpacked / "FashionMNIST" / "raw"
    name = TEST_LABELS.removesuffix(".gz")
    damage_flip(raw / name)
    with pytest.raises(UsageError, match=f"{name}: it is damaged or something else: MD5 .*{data.UNPACKED_MD5[name]}"):
        load_dataset(str(unpacked))
    (raw / name).write_bytes((raw / TRAIN_LABELS.removesuffix(".gz")).read_bytes())
    with pytest.raises(UsageError, match=f"{name}: it is {TRAIN_LABELS.removesuffix('.gz')} under a wrong name"):
        load_dataset(str(unpacked))


@pytest.mark.parametrize("below", ["FashionMNIST/raw", "FashionMNIST"])
def test_a_folder_too_deep_is_told_the_right_one(
    folder: Path, below: str, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    here = folder / below
    for place in (str(here), str(here.relative_to(folder.parent)), "."):
        monkeypatch.chdir(here if place == "." else folder.parent)
        right = folder if place in (".", str(here)) else Path(folder.name)
        with pytest.raises(UsageError, match=f"^--data {re.escape(place)}: .*; name the folder above both: ") as told:
            load_dataset(place)
        assert Path(str(told.value).rpartition(": ")[2]) == right
    monkeypatch.setenv("FMNIST_DATA", str(here))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UsageError, match=f"name the folder above both: {folder}$"):
        load_dataset()


def test_files_that_lie_loose_are_told_their_place(folder: Path) -> None:
    loose = (folder / "FashionMNIST" / "raw").rename(folder / "archive")
    with pytest.raises(UsageError, match=f"move them into {loose / 'FashionMNIST' / 'raw'}"):
        load_dataset(str(loose))


def test_files_are_read_without_a_copy(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full temporary folder is nothing to them."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert load_dataset(str(source)).sha256 == SHA256


def test_a_user_without_a_home_has_no_cache(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setenv("FMNIST_DATA", str(source))
    assert load_dataset().sha256 == SHA256
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["nowhere", "a-file", "empty"])
def test_a_folder_without_data_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"{tmp_path / place}.*FashionMNIST/raw"):
        load_dataset(str(tmp_path / place))


def test_an_explicit_folder_is_read_though_the_cache_is_full(folder: Path, fashion_mnist: Dataset) -> None:
    damage_flip(folder / "FashionMNIST" / "raw" / TEST_IMAGES)
    assert load_dataset().sha256 == SHA256
    with pytest.raises(UsageError, match=TEST_IMAGES):
        load_dataset(str(folder))


def test_places_are_tried_in_order(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("FMNIST_DATA", raising=False)
    assert data.find_folder() is None
    for place in ("../shared/datasets", "data"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).symlink_to(source)
        assert data.find_folder() == Path(place)
    monkeypatch.setenv("FMNIST_DATA", str(source))
    assert data.find_folder() == source
    monkeypatch.setenv("FMNIST_DATA", str(tmp_path))
    assert data.find_folder() == Path("data")


def test_a_filled_cache_serves_without_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist: Dataset
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMNIST_DATA", raising=False)
    served = load_dataset()
    assert served.source.endswith(".bytes")
    assert data.digest(served.train, served.test) == SHA256


def test_what_a_program_does_to_its_data_leaves_the_cache_alone(fashion_mnist: Dataset, empty_cache: Path) -> None:
    load_dataset()
    cached = load_dataset()
    assert cached.source == str(empty_cache)
    cached.train.images[:] = 0
    assert np.array_equal(load_dataset().train.images, fashion_mnist.train.images)
    assert cached.train.images.max() == 0


def damage_whole_images(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 10 * 784])


def damage_longer(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(2**28)


def damage_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_flip, damage_empty, damage_whole_images, damage_longer, damage_fifo]
)
def test_a_damaged_cache_is_rebuilt(
    fashion_mnist: Dataset, empty_cache: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_dataset().source != str(empty_cache)
    damage(empty_cache)
    assert load_dataset().source != str(empty_cache)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{empty_cache}: the data cache is damaged or unreadable" in said
    assert load_dataset().source == str(empty_cache)


def test_a_cache_that_cannot_be_written_costs_a_line_only(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_dataset().sha256 == SHA256
    assert "cannot be written" in capsys.readouterr().err


def test_two_runs_may_fill_the_cache_at_once(fashion_mnist: Dataset, empty_cache: Path) -> None:
    writers = [threading.Thread(target=data._write_cache, args=(fashion_mnist,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert load_dataset().source == str(empty_cache)
    assert list(empty_cache.parent.iterdir()) == [empty_cache]


def test_without_source_and_network_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_DATA", str(tmp_path / "gone"))
    # A port that nothing listens on: refused at once, with or without a network.
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UnavailableError) as caught:
        load_dataset()
    for part in (*MD5, "gone", "../shared/datasets", "data/FashionMNIST/raw", "http://127.0.0.1:9/", "synthetic"):
        assert part in str(caught.value)
    assert not Path("data").exists()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Iterator[Path]:
    """A folder that torchvision downloads from, on this machine, while there is no other source."""
    served = tmp_path / "served"
    served.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("FMNIST_DATA", raising=False)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        yield served
        server.shutdown()


def test_a_download_lands_in_data(source: Path, mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in MD5:
        shutil.copy(source / "FashionMNIST" / "raw" / name, mirror)
    assert load_dataset().source == "data"
    assert {path.name for path in Path("data").rglob("*") if path.is_file()} == set(MD5)
    assert capsys.readouterr().out == ""


def test_a_download_of_something_else_leaves_nothing(mirror: Path) -> None:
    for name in MD5:
        damage_portal(mirror / name)
    with pytest.raises(UnavailableError, match="cannot be downloaded"):
        load_dataset()
    assert not Path("data").exists()


@pytest.mark.parametrize("label", [-1, 10, 200])
def test_labels_outside_the_classes_are_named(dataset: Dataset, label: int) -> None:
    labels = dataset.test.labels.copy()
    labels[17] = label
    wrong = data.check(dataset.train, Split(dataset.test.images, labels))
    assert wrong is not None
    assert "test labels" in wrong
    assert str(label) in wrong


def test_shapes_and_dtypes_are_checked(dataset: Dataset) -> None:
    train, test = dataset.train, dataset.test
    assert data.check(train, test) is None
    assert data.check(test, test) is not None
    assert data.check(train, Split(test.images.reshape(-1, 784), test.labels)) is not None
    assert data.check(train, Split(test.images, test.labels.astype(np.int32))) is not None


def test_the_stand_in_is_the_same_everywhere_and_well_formed() -> None:
    drawn = load_dataset("synthetic")
    assert drawn.name == "synthetic"
    assert drawn.sha256 == "7bc6b57eb5f7b403c55ac02e7c74bb5ba3bc9e7fb121957e98d3d1679c90aed3"
    assert data.check(drawn.train, drawn.test) is None
    assert np.bincount(drawn.train.labels).tolist() == [6000] * 10
    assert np.bincount(drawn.test.labels).tolist() == [1000] * 10


def test_the_stand_in_s_images_all_differ() -> None:
    images, _ = synthetic.draw()
    images = images.reshape(-1, 784)
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_every_pixel_value_decodes_as_by_to_tensor(batch_size: int) -> None:
    """As it is compiled in the loop over batches, and beside it."""
    every = np.arange(4 * 784, dtype=np.uint32).astype(np.uint8).reshape(4, 28, 28)
    assert len(np.unique(every)) == 256
    expected = np.stack([ToTensor()(image[:, :, None]).numpy().reshape(784) for image in every])
    pixels: list[np.ndarray] = []

    def step(carry: int, batch: jax.Array, _: jax.Array) -> tuple[int, jax.Array]:
        jax.debug.callback(lambda one: pixels.append(np.array(one)), batch, ordered=True)
        return carry, batch.sum()

    jax.jit(lambda images, labels: scan_batches(step, 0, images, labels, batch_size))(every, np.zeros(4, np.int32))
    jax.effects_barrier()
    decoded = np.concatenate(pixels)
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, expected)
