"""The post's claims, and what many seeds say of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from fmnist.experiment import TRAINING_IMAGES, Experiment
from fmnist_jax.lessons.latency import Timing

Percents = NDArray[np.float64]

CONVERGED = 0.1
"""A learning rate at which 20 epochs are enough for either network."""


class Setting(NamedTuple):
    """What is trained with every seed."""

    structure: str
    """As `Experiment.structure`: `784-16-10`."""
    softmax_output: bool = False
    lr: float = 1e-3


def setting(experiment: Experiment) -> Setting:
    return Setting(experiment.structure, experiment.softmax_output, experiment.lr)


class Claim(NamedTuple):
    """A number of the post, in percent of the test images, and what every seed makes of it, `(seeds,)`."""

    what: str
    post: float
    ours: Percents
    epochs: Sequence[int] = ()
    """Those after which the post's number lies within the seeds' range, of all that were trained."""

    @property
    def reached(self) -> int:
        """How many seeds come to the post's number or beyond."""
        return int((self.ours >= self.post).sum())

    @property
    def place(self) -> str:
        """Where the post's number lies among the seeds'."""
        if self.post > self.ours.max():
            return f"above all {len(self.ours)} seeds"
        if self.post < self.ours.min():
            return f"below all {len(self.ours)} seeds"
        return "within the seeds' range"


class Lesson(NamedTuple):
    """A lesson of the post: its words, its numbers, and what we say of it."""

    number: int
    words: str
    claims: list[Claim]
    verdict: str
    """In a few words, which do not depend on which seeds were taken if it is any good."""
    reasons: str
    """The figures that bear it."""


class Observations(NamedTuple):
    """What was measured."""

    seeds: list[int]
    accuracy: dict[Setting, Percents]
    """In percent after every epoch, `(seeds, epochs)`; of the CNN fewer seeds."""
    timings: list[Timing]
    epoch_seconds: dict[str, float]
    """Of an epoch of training, by the network's structure."""


def conclude(results: Observations) -> list[Lesson]:
    """A conclusion on every lesson."""
    lessons = (_softmax_first, _more_units, _more_epochs, _eighty, _accelerator, _second_layer, _convolutions)
    return [lesson(results) for lesson in lessons]


def _mlp(*hidden: int, softmax_output: bool = False) -> Setting:
    return setting(Experiment(hidden=hidden, softmax_output=softmax_output))


def _after(results: Observations, epochs: int, *hidden: int, softmax_output: bool = False) -> Percents:
    return results.accuracy[_mlp(*hidden, softmax_output=softmax_output)][:, epochs - 1]


def _claim(results: Observations, what: str, post: float, epochs: int, *hidden: int) -> Claim:
    """A number that the post reports after some epochs, and the epochs after which ours span it."""
    accuracy = results.accuracy[_mlp(*hidden)]
    spanned = (accuracy.min(axis=0) <= post) & (post <= accuracy.max(axis=0))
    return Claim(what, post, accuracy[:, epochs - 1], [int(epoch) + 1 for epoch in np.flatnonzero(spanned)])


def _spans(epochs: Sequence[int]) -> str:
    """`after 27 to 33 epochs`"""
    if not epochs:
        return "after none of the epochs that were trained"
    return f"after {epochs[0]} to {epochs[-1]} epochs" if len(epochs) > 1 else f"after {epochs[0]} epochs"


def _softmax_first(results: Observations) -> Lesson:
    softmax, logits = (_after(results, 5, 4, softmax_output=switch) for switch in (True, False))
    claims = [
        Claim("4 units, softmax first, 5 epochs", 19, softmax),
        Claim("4 units, logits, 5 epochs", 39, logits),
    ]
    loss = logits - softmax
    holds = loss.mean() > _half_interval(loss) and _within(claims)
    return Lesson(
        1,
        "a softmax before the cross-entropy stalls the training",
        claims,
        "holds" if holds else "does not hold",
        f"{int((loss > 0).sum())} of {len(loss)} seeds do worse with it, by {loss.mean():.1f} points in the mean",
    )


def _more_units(results: Observations) -> Lesson:
    four, sixteen, more = (_after(results, 5, width) for width in (4, 16, 32))
    claims = [Claim("16 units, 5 epochs", 65, sixteen)]
    gain = more - sixteen
    interval = _half_interval(gain)
    if not _within(claims) or gain.mean() >= 1:
        verdict = "does not hold"
    elif gain.mean() + interval < 1:
        verdict = "holds"
    else:
        verdict = "holds in the mean, but the gain of 32 units may be more than a point"
    return Lesson(
        2,
        "from 4 to 16 units helps much, to 32 less than one point more",
        claims,
        verdict,
        f"16 units gain {(sixteen - four).mean():.1f} points on 4; 32 gain {gain.mean():.2f} ± {interval:.2f} on 16 "
        f"(the mean's 95 % interval), less than one in {int((gain < 1).sum())} of {len(gain)} seeds",
    )


def _more_epochs(results: Observations) -> Lesson:
    twenty = _after(results, 20, 16)
    claims = [
        _claim(results, "16 units, 10 epochs", 71, 10, 16),
        _claim(results, "16 units, 20 epochs", 79.6, 20, 16),
    ]
    places = [f"{claim.post:g} % is {claim.place}" for claim in claims]
    return Lesson(
        3,
        "10 epochs give 71 %, 20 epochs 79.6 %",
        claims,
        "holds" if _within(claims) else "; ".join(places),
        f"after 20 epochs the best of {len(twenty)} seeds has {twenty.max():.2f} %; the seeds' range holds 71 % "
        f"{_spans(claims[0].epochs)}, 79.6 % {_spans(claims[1].epochs)}",
    )


def _eighty(results: Observations) -> Lesson:
    accuracy = results.accuracy[_mlp(16)]
    claims = [_claim(results, f"16 units, {epochs} epochs", 80, epochs, 16) for epochs in (20, 40)]
    reached = accuracy >= 80
    ever = int(reached.any(axis=1).sum())
    reasons = f"{ever} of {len(reached)} seeds reach 80 % within 40 epochs"
    if ever:
        first = 1 + reached.argmax(axis=1)[reached.any(axis=1)]
        reasons += f", first after {first.min()} to {first.max()} epochs, {np.median(first):.0f} in the median"
    if ever < len(reached):
        verdict = "does not hold for every seed within 40 epochs"
    else:
        verdict = "holds" if reached[:, :20].any() else "holds, but no seed gets there in the post's 20 epochs"
    return Lesson(4, "80 % is within reach of 16 units", claims, verdict, reasons)


def _accelerator(results: Observations) -> Lesson:
    tiny = {timing.device: timing for timing in results.timings if (timing.width, timing.batch_size) == (16, 64)}
    words = "a tiny network gains nothing from a big accelerator"
    host = next((timing for device, timing in tiny.items() if device.startswith(("cpu", "TFRT_CPU"))), None)
    if host is None:
        return Lesson(5, words, [], "not tried: no CPU here", "JAX_PLATFORMS leaves it out")
    others = [timing for timing in tiny.values() if timing is not host]
    here = [timing for timing in results.timings if timing.device == host.device]
    share = _rate(host) / max(map(_rate, here))
    reasons = (
        f"{host.device} takes {1e3 * host.seconds:.0f} ms an epoch, {1e6 * host.seconds * 64 / TRAINING_IMAGES:.0f} µs "
        f"a step, and does {share:.0%} of the most arithmetic a second that it does at any size"
    )
    if not others:
        verdict = "not tried: no accelerator here"
        reasons += "; an accelerator gains only if it takes less for a step"
    else:
        fastest = min(others, key=lambda timing: timing.seconds)
        ratio = host.seconds / fastest.seconds
        verdict = "holds" if ratio <= 1 else "does not hold"
        reasons += f"; {fastest.device} takes {1e3 * fastest.seconds:.0f} ms, {ratio:.2f} times as fast"
    return Lesson(5, words, [], verdict, reasons)


def _second_layer(results: Observations) -> Lesson:
    one, two = _after(results, 20, 16), _after(results, 20, 16, 16)
    claims = [_claim(results, "16-16 units, 20 epochs", 78, 20, 16, 16)]
    other = _claim(results, "", 79.6, 20, 16).epochs
    both = [epoch for epoch in claims[0].epochs if epoch in other]
    loss = one - two
    verdict = "does not hold" if loss.mean() < -_half_interval(loss) else "holds"
    return Lesson(
        6,
        "a second hidden layer of 16 does not help, 78 %",
        claims,
        verdict if _within(claims) else f"{verdict}; 78 % is {claims[0].place}",
        f"{int((loss > 0).sum())} of {len(loss)} seeds do worse with it, by {loss.mean():.1f} points in the mean; the "
        f"seeds' range holds 78 % {_spans(claims[0].epochs)}, and it beside the 79.6 % of 16 units {_spans(both)}",
    )


def _convolutions(results: Observations) -> Lesson:
    cnn, mlp = Experiment(network="cnn"), Experiment()
    count = len(results.accuracy[setting(cnn)])
    reasons, gains = [], []
    for lr in (mlp.lr, CONVERGED):
        ours, theirs = (results.accuracy[setting(replace(each, lr=lr))][:count, :20] for each in (cnn, mlp))
        gain = ours[:, -1] - theirs[:, -1]
        gains.append(gain)
        late = [f"{(each[:, -1] - each[:, -6]).mean():+.2f}" for each in (ours, theirs)]
        reasons.append(
            f"lr {lr:g}: {ours[:, -1].mean():.2f} % against {theirs[:, -1].mean():.2f} %, {gain.mean():+.2f} ± "
            f"{_half_interval(gain):.2f} points (the last 5 epochs gave {late[0]} and {late[1]})"
        )
    seconds = [results.epoch_seconds[each.structure] for each in (cnn, mlp)]
    under = "better" if gains[0].mean() > 0 else "worse"
    sure = all(abs(gain.mean()) > _half_interval(gain) for gain in gains)
    return Lesson(
        7,
        "next up, how this compares to CNNs",
        [],
        f"a CNN does {under} under the post's recipe, and {'better' if gains[1].mean() > 0 else 'worse'} at a rate of "
        f"{CONVERGED:g}" + ("" if sure else ", though not beyond chance in both"),
        f"{count} seeds, 20 epochs; {'; '.join(reasons)}; {cnn.parameters:,} parameters against {mlp.parameters:,}, "
        f"{seconds[0]:.2f} s an epoch against {seconds[1]:.2f} s",
    )


def _within(claims: Sequence[Claim]) -> bool:
    return all(claim.place.startswith("within") for claim in claims)


def _half_interval(differences: Percents) -> float:
    """Half the 95 % confidence interval of a mean, by Student's t."""
    count = len(differences)
    return float(student_t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))


def _rate(timing: Timing) -> float:
    """Arithmetic a second, in multiples that do not matter: the first layer's products are nearly all of it."""
    return timing.width / timing.seconds
