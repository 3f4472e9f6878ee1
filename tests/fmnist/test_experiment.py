"""The contract and its command line."""

import dataclasses

import pytest

from fmnist.command import UsageError, flag, parse
from fmnist.experiment import Experiment
from fmnist.runs.options import TrainOptions


def parsed(*arguments: str) -> TrainOptions:
    return parse(TrainOptions, list(arguments), "fmnist_jax.train", "")


def test_the_defaults_are_the_post_s() -> None:
    assert parsed().experiment == Experiment(
        hidden=(16,), softmax_output=False, batch_size=64, lr=1e-3, epochs=20, seed=0
    )


def test_every_field_has_a_flag() -> None:
    line = "--hidden 4 8 --softmax-output --batch-size 7 --lr 0.5 --epochs 3 --seed 9 --data d --device cpu --overwrite"
    options = parsed(*line.split(), "--output", "runs/a")
    assert options.experiment == Experiment(hidden=(4, 8), softmax_output=True, batch_size=7, lr=0.5, epochs=3, seed=9)
    assert (options.data, options.device, options.overwrite, str(options.output)) == ("d", "cpu", True, "runs/a")


def test_the_limits_themselves_are_allowed() -> None:
    for valid in ({"batch_size": 1}, {"batch_size": 60_000}, {"seed": 2**64 - 1}, {"epochs": 1}, {"hidden": (1,)}):
        Experiment(**valid)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", value) for value in ("0", "-3", "1.5", "abc", "")),
        *(("lr", value) for value in ("0", "nan", "inf", "-1", "-1e-5", "1e-50", "1e39", "fast", "")),
        *(("hidden", value) for value in ("0", "", "16 0", "16 x", "-4", "999999999")),
        *(("batch_size", value) for value in ("0", "60001", "-1", "6.4")),
        *(("seed", value) for value in ("-1", str(2**64), "x")),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: str, joined: bool) -> None:
    given = [f"{flag(name)}={value}"] if joined and " " not in value else [flag(name), *value.split()]
    expected = rf"^{flag(name)} \S.*: expected .*, e\.g\. {flag(name)} "
    if joined and not value:
        expected = f"^{flag(name)} without a value"
    with pytest.raises(UsageError, match=expected) as caught:
        parsed(*given)
    assert "\n" not in str(caught.value)
    assert all(part.strip("0123456789") in str(caught.value) for part in value.split())


@pytest.mark.parametrize("arguments", [["--bogus", "3"], ["stray"], ["--epoch", "3"], ["--softmax-output", "yes"]])
def test_an_unknown_flag_is_named(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=arguments[0] if arguments[0] != "--softmax-output" else "yes"):
        parsed(*arguments)


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().seed = 1  # type: ignore[misc]


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    assert not stop.value.code
    said = capsys.readouterr().out
    for field in dataclasses.fields(Experiment):
        assert flag(field.name) in said
    for default in ("64", "0.001", "20", "auto"):
        assert f"(default: {default})" in said


def test_parameters_are_counted_with_biases() -> None:
    assert Experiment().parameters == 784 * 16 + 16 + 16 * 10 + 10
    assert Experiment(hidden=(16, 16)).structure == "784-16-16-10"
    assert Experiment(network="cnn").parameters == 8 * 9 + 8 + 16 * 8 * 9 + 16 + 10 * 16 * 49 + 10 == 9098
