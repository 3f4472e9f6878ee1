"""`python -m fmnist_jax.predict` and the torch side: the same answers, for any model file and any image."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fmnist.command import UsageError
from fmnist.data import Dataset
from fmnist.experiment import Experiment
from fmnist.predictions import images, report
from fmnist.predictions.model_file import read_model
from fmnist.signatures import save_signed
from fmnist_jax import predict as jax_predict
from fmnist_jax import torch_rng
from fmnist_torch import predict as torch_predict
from tests.conftest import assert_one_line, here
from tests.programs.conftest import SIDES


@pytest.fixture(scope="module")
def model(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two epochs at a high rate."""
    folder = tmp_path_factory.mktemp("model")
    done = here("fmnist_jax.train", "--epochs", "2", "--lr", "0.05", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def pictures(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test set's first image as it is, large, inverted, coloured and turned to a JPEG."""
    folder = tmp_path_factory.mktemp("pictures")
    grey = Image.fromarray(dataset.test.images[0])
    grey.save(folder / "small.png")
    grey.resize((280, 280), Image.Resampling.NEAREST).save(folder / "large.png")
    light = Image.fromarray(255 - dataset.test.images[0]).resize((300, 300)).convert("RGB")
    light.save(folder / "light.jpg", quality=95)
    return folder


def test_both_sides_give_the_same_probabilities(model: Path, dataset: Dataset) -> None:
    experiment, state_dict = read_model(model)
    by_torch, by_jax = (
        side.prepare("cpu")(experiment, state_dict, dataset.test.images) for side in (torch_predict, jax_predict)
    )
    assert by_torch.shape == by_jax.shape == (10_000, 10)
    assert abs(by_torch - by_jax).max() < 1e-5
    assert (by_torch.argmax(axis=1) != by_jax.argmax(axis=1)).sum() <= 1
    np.testing.assert_allclose(by_jax.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_the_test_set_s_accuracy_is_the_trainer_s(side: str, model: Path, tmp_path: Path, dataset: Dataset) -> None:
    metrics = [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
    done = here(f"{side}.predict", str(model), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert found["accuracy"] == pytest.approx(metrics[-1]["accuracy"], abs=1.01e-4)
    assert done.stdout.startswith(f"{found['accuracy']:.2%} of 10,000 test images of {dataset.name}")
    assert len(done.stdout.splitlines()) == 2 + 10
    counts = np.array(found["confusion"])
    assert counts.sum() == 10_000
    assert np.trace(counts) / 10_000 == found["accuracy"]
    assert found["classes"]["Bag"]["recall"] == counts[8, 8] / counts[8].sum()
    assert found["classes"]["Bag"]["precision"] == counts[8, 8] / counts[:, 8].sum()
    assert (tmp_path / "predictions.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("side", SIDES)
def test_images_of_any_size_are_answered(side: str, model: Path, pictures: Path, dataset: Dataset) -> None:
    name = report.NAMES[dataset.test.labels[0]]
    paths = [str(pictures / name) for name in ("small.png", "large.png", "light.jpg")]
    done = here(f"{side}.predict", str(model), *paths)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for path, line in zip(paths, lines, strict=True):
        assert re.fullmatch(rf"{re.escape(path)}: {name} \d+\.\d%, [A-Z][^,]+ \d+\.\d%, [A-Z][^,]+ \d+\.\d%", line)
    assert "light.jpg: its background is light" in done.stderr
    assert done.stderr.count("inverted") == 1


def test_json_has_all_probabilities(model: Path, pictures: Path, dataset: Dataset) -> None:
    done = here("fmnist_jax.predict", str(model), str(pictures / "small.png"), "--json")
    (answer,) = json.loads(done.stdout)
    assert answer["class"] == report.NAMES[dataset.test.labels[0]]
    assert list(answer["probabilities"]) == list(report.NAMES)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_an_image_of_the_test_set_comes_back_as_it_was(dataset: Dataset, pictures: Path) -> None:
    small = images.read_image(pictures / "small.png")
    assert not small.inverted
    assert np.array_equal(small.pixels, dataset.test.images[0])
    light = images.read_image(pictures / "light.jpg")
    assert light.inverted
    assert abs(light.pixels.astype(int) - dataset.test.images[0]).mean() < 12


def test_shapes_colours_and_depths_are_brought_to_one_form(tmp_path: Path) -> None:
    gradient = np.linspace(0, 200, 56 * 56).reshape(56, 56)
    gradient[[0, -1]], gradient[:, [0, -1]] = 0, 0
    grey = Image.fromarray(gradient.astype(np.uint8))
    forms = {
        "grey": grey,
        "rgb": grey.convert("RGB"),
        "palette": grey.convert("P"),
        "deep": Image.fromarray(gradient.astype(np.uint16) << 8),
        "opaque": grey.convert("RGBA"),
    }
    for name, form in forms.items():
        form.save(tmp_path / f"{name}.png")
    pixels = {name: images.read_image(tmp_path / f"{name}.png").pixels.astype(int) for name in forms}
    for name in forms:
        assert abs(pixels[name] - pixels["grey"]).max() <= 2, name
    Image.new("L", (100, 20), 255).save(tmp_path / "wide.png")
    assert (images.read_image(tmp_path / "wide.png").pixels == 0).all()


def test_a_model_that_a_pytorch_user_wrote_is_read(dataset: Dataset, tmp_path: Path) -> None:
    own = nn.Sequential(nn.Flatten(), *(layer for _ in range(9) for layer in (nn.Linear(784, 784), nn.ReLU())))
    own.append(nn.Linear(784, 10))
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    experiment, state_dict = read_model(tmp_path / "own.safetensors")
    assert experiment.hidden == (784,) * 9
    # Layer 11 of the Sequential comes after layer 9, whatever their names' spelling says.
    found = torch_predict.prepare("cpu")(experiment, state_dict, dataset.test.images[:50])
    with torch.no_grad():
        expected = own(torch.tensor(dataset.test.images[:50]) / 255).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "model.safetensors", {k: torch.tensor(v) for k, v in torch_rng.init(Experiment()).items()}
    wrong: dict[str, Any] = {
        "a layer without bias": {name: tensor for name, tensor in good.items() if name != "fc2.bias"},
        "something else besides": good | {"running_mean": torch.zeros(3)},
        "other inputs": good | {"fc1.weight": torch.zeros(16, 28)},
        "other outputs": good | {"fc2.weight": torch.zeros(9, 16), "fc2.bias": torch.zeros(9)},
        "integers": good | {"fc1.bias": torch.zeros(16, dtype=torch.int32)},
        "NaN": good | {"fc1.bias": torch.full((16,), torch.nan)},
    }
    for what, state_dict in wrong.items():
        save_file(state_dict, path)
        with pytest.raises(UsageError, match=re.escape(str(path))):
            read_model(path)
        assert what
    save_file(good, path)
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:100], b"PK" + content[2:], (2**43).to_bytes(8, "little") + content[8:]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=re.escape(str(path))):
            read_model(path)


def test_no_flipped_bit_and_no_missing_byte_of_a_trainer_s_model_is_believed(tmp_path: Path) -> None:
    path, choose = tmp_path / "model.safetensors", random.Random(0)
    content = save_signed(torch_rng.init(Experiment(hidden=(2,))), "model 1")
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(header), *(choose.randrange(header, len(content)) for _ in range(300))]
    damaged = [content[: choose.randrange(len(content))] for _ in range(300)]
    damaged += [content[:at] + bytes([content[at] ^ 1 << choose.randrange(8)]) + content[at + 1 :] for at in places]
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(UsageError, match=re.escape(str(path))):
            read_model(path)
    path.write_bytes(content)
    assert read_model(path)[0].hidden == (2,)


@pytest.mark.parametrize("side", SIDES)
def test_bad_images_end_in_one_line(side: str, model: Path, pictures: Path, tmp_path: Path, capfd: Any) -> None:
    whole = (pictures / "large.png").read_bytes()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.jpg").write_bytes((pictures / "light.jpg").read_bytes()[:500])
    (tmp_path / "text.png").write_text("not an image\n")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    frames = [Image.new("L", (28, 28), value) for value in (0, 100)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    (tmp_path / "folder.png").mkdir()
    module = {"fmnist_torch": torch_predict, "fmnist_jax": jax_predict}[side]
    names = "empty.png cut.png cut.jpg text.png bomb.png moving.gif moving.png folder.png no.png"
    for name in names.split():
        with pytest.raises(UsageError, match=re.escape(str(tmp_path / name))) as refused:
            report.run([str(model), str(tmp_path / name)], module.NAME, module.prepare)
        assert "\n" not in str(refused.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("", 2, "MODEL"),
        ("nowhere.safetensors", 2, "nowhere.safetensors: no such file"),
        ("README.md", 2, "README.md: "),
        ("README.md --device tpu", 3, "--device tpu"),
        ("README.md a.png --output x", 2, "--output is for the test set"),
    ],
)
def test_bad_input_ends_in_one_line(arguments: str, code: int, words: str) -> None:
    assert_one_line(here("fmnist_jax.predict", *arguments.split()), "fmnist_jax.predict", code, words)
