"""Planted faults: right ports with one mistake each, and the stage at which the judge has to find it."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.tools.faults import formulas
from tests.tools.faults.arithmetic import (
    coarse_cross_entropy,
    lower,
    lowered_product,
    momentum_step,
    overflowing_cross_entropy,
    overflowing_softmax,
)
from tests.tools.faults.formulas import RIGHT
from tests.tools.faults.making import (
    cached_by_shape,
    content,
    down,
    first_start_wins,
    frozen_middle,
    gives_back,
    gradient,
    in_percent,
    in_place,
    last_of_ties,
    later,
    leaky,
    log_of_small_p,
    narrow,
    of_batch_size,
    only,
    only_from,
    redrawn,
    restored,
    scaled,
    smoothed,
    stepping,
    tests_cached,
    trains_on_tests,
    whole,
    wrong,
)
from tests.tools.faults.numpy_port import numpy_port


@dataclass(frozen=True)
class Fault:
    """A mistaken port of the earlier interface, the stage at which it first goes wrong, and what was done in words."""

    name: str
    stage: str
    make: Callable[[], Any]
    words: str | None = None


def faults() -> Iterator[Fault]:
    """All faults, by stage."""
    f = Fault
    yield f("pixels / 256", "outputs", wrong(decode=scaled(lambda x: x / np.float32(256))), "divided by 256")
    yield f("pixels * (1/255)", "outputs", wrong(decode=scaled(lambda x: x * np.float32(1 / 255))), "by 1/255")
    yield f("pixels unscaled", "outputs", wrong(decode=scaled(lambda x: x)), "not scaled")
    standard = scaled(lambda x: (x / np.float32(255) - np.float32(0.2860)) / np.float32(0.3530))
    yield f("pixels standardised", "outputs", wrong(decode=standard), "standardised")
    columns = wrong(decode=lambda images: formulas.decode(np.ascontiguousarray(images.transpose(0, 2, 1))))
    yield f("columns first", "outputs", columns, "column by column")
    yield f("mirrored images", "outputs", wrong(decode=lambda images: formulas.decode(images[:, :, ::-1])), "mirrored")
    coarse = wrong(decode=lambda images: lower(formulas.decode(images), "bfloat16"))
    yield f("pixels in bfloat16", "outputs", coarse, "bfloat16")
    yield f("pixels cached by shape", "outputs", cached_by_shape)

    zero_bias = redrawn(lambda name, tensor: np.zeros_like(tensor) if "bias" in name else tensor)
    yield f("biases start at 0", "init", zero_bias, "zero")
    by_columns = redrawn(lambda name, tensor: np.reshape(tensor, tensor.shape[::-1]).T.copy())
    yield f("drawn as (in, out)", "init", by_columns, "column by column")
    next_seed = wrong(draw=lambda experiment: RIGHT.draw(replace(experiment, seed=experiment.seed + 1)))
    yield f("the next seed", "init", next_seed, "seed is off by +1")
    wide = redrawn(lambda name, tensor: tensor * np.float32(np.sqrt(6)) if "weight" in name else tensor)
    yield f("Kaiming's bound", "init", wide, "Kaiming's bound for ReLU")
    off = redrawn(lambda name, tensor: np.nextafter(tensor, np.float32(0)))
    yield f("a draw one ulp off", "init", off)

    reshaped = restored(lambda tensor: np.reshape(tensor.T, tensor.shape) if tensor.ndim == 2 else tensor)
    yield f("given back reshaped", "load", reshaped, "reshaped")
    yield f("kept in float16", "load", restored(lambda tensor: lower(tensor, "float16")), "float16")
    kept = restored(lambda tensor: tensor.astype(np.float32).astype(tensor.dtype))
    yield f("float64 kept in float32", "load", kept, "float32")
    yield f("steps write into the start", "step", in_place, "wrote into")
    yield f("the start's memory given back", "load", gives_back, "returned the memory")
    yield f("a start that was trained on", "step", first_start_wins)

    linear = wrong(activation=lambda x, layer: x, slope=lambda x, layer: np.ones_like(x))
    yield f("no activation", "outputs", linear, "no activation")
    leaky_slope = {"slope": lambda x, layer: np.where(x > 0, 1, x.dtype.type(0.01)).astype(x.dtype)}
    yield f("leaky ReLU", "outputs", wrong(activation=leaky, **leaky_slope), "leaky ReLU of slope 0.01")
    capped = wrong(
        activation=lambda x, layer: np.clip(x, 0, 6), slope=lambda x, layer: ((x > 0) & (x < 6)) * x.dtype.type(1)
    )
    yield f("ReLU6", "outputs", capped, "ReLU6")
    unbiased = wrong(parameter=lambda value, name: value * 0 if name == "fc1.bias" else value)
    yield f("no bias in fc1", "outputs", unbiased, "the bias of `fc1` is missing")
    kernel = wrong(parameter=lambda v, n: v.reshape(v.shape[::-1]).T if n == "fc1.weight" else v)
    yield f("kernel reshaped", "outputs", kernel, "`fc1.weight` is reshaped")
    second = wrong(
        activation=lambda x, layer: x if layer == "fc2" else formulas.relu(x, layer),
        slope=lambda x, layer: np.ones_like(x) if layer == "fc2" else formulas.relu_slope(x, layer),
    )
    yield f("no second activation", "outputs", second, "ReLU is missing after `fc2`")
    tf32 = wrong(product=lowered_product("TF32", lambda role: role == "fc1 forward"))
    yield f("TF32 in fc1", "outputs", tf32, "TF32")
    bfloat16 = wrong(product=lowered_product("bfloat16", lambda role: role == "fc2 forward"))
    yield f("bfloat16 in fc2", "outputs", bfloat16, "bfloat16")
    yield f("softmax_output ignored", "outputs", wrong(applies_softmax=lambda experiment: False), "is ignored")
    over_batch = wrong(softmax=lambda values: formulas.softmax(values.T).T)
    yield f("softmax over the batch", "outputs", over_batch, "over the batch")
    yield f("softmax that overflows", "outputs", wrong(softmax=overflowing_softmax), "exp overflows")
    yield f("float64 logits in float32", "outputs", narrow("logits"), "float32 where float64")

    total = wrong(weigh_loss=lambda rows, e: 1.0, weigh_gradient=lambda rows, e: 1.0)
    yield f("sum for mean", "loss", total, "summed over the batch")
    by_size = wrong(weigh_loss=of_batch_size, weigh_gradient=of_batch_size)
    yield f("divided by batch_size", "loss", by_size, "the experiment's batch size")
    yield f("labels off by one", "loss", wrong(labels=lambda labels: (labels + 1) % 10), "labels are off by +1")
    yield f("labels smoothed", "loss", wrong(cross_entropy=smoothed), "smoothed by 0.1")
    yield f("log(p + 1e-9)", "loss", wrong(cross_entropy=log_of_small_p), "-log(p + 1e-9)")
    yield f("log-sum-exp that overflows", "loss", wrong(cross_entropy=overflowing_cross_entropy), "exp overflows")
    coarse_sum = wrong(cross_entropy=functools.partial(coarse_cross_entropy, kind="bfloat16"))
    yield f("log-sum-exp in bfloat16", "loss", coarse_sum, "log-sum-exp passes through bfloat16")
    mended = only("loss", applies_softmax=lambda experiment: False)
    yield f("loss ignores softmax_output", "loss", mended, "is ignored")
    yield f("float64 loss in float32", "loss", narrow("loss"), "float32 where float64")

    half = wrong(slope=lambda x, layer: np.heaviside(x, x.dtype.type(0.5)))
    yield f("jnp.maximum for relu", "gradients", half, "exactly 0 is half")
    yield f("gradient's sign", "gradients", wrong(**gradient(np.negative)), "wrong sign")
    yield f("fc1.weight frozen", "gradients", wrong(**gradient(np.zeros_like, "fc1.weight")), "`fc1.weight` is zero")
    backward = wrong(product=lowered_product("bfloat16", lambda role: role.endswith("weight")))
    yield f("kernel gradients in bfloat16", "gradients", backward, "kernels' gradients")
    sized = wrong(weigh_gradient=of_batch_size)
    yield f("gradient by batch_size", "gradients", sized, "the experiment's batch size")
    through = wrong(softmax_pullback=lambda probabilities, cotangent: cotangent)
    yield f("gradient past the softmax", "gradients", through, "as if it were not there")
    clipped = wrong(**gradient(lambda values: np.clip(values, -10, 10)))
    yield f("gradient clipped at 10", "gradients", clipped, "clipped to ±10")
    yield f("middle layer frozen", "gradients", wrong(gradient=frozen_middle), "zero")
    yield f("float64 gradients in float32", "gradients", narrow("gradients"), "float32 where float64")

    yield f("no update", "step", wrong(**stepping(lambda t, g, e: t)), "do not change")
    climbs = wrong(**stepping(lambda t, g, e: {n: down(t[n], g[n], -e.lr) for n in t}))
    yield f("ascent", "step", climbs, "climbs")
    fixed = wrong(**stepping(lambda t, g, e: {n: down(t[n], g[n], 1e-3) for n in t}))
    yield f("lr always 1e-3", "step", fixed, "the rate is always 0.001")
    yield f("momentum", "steps", wrong(step=momentum_step(0.9, nesterov=False)), "a momentum of 0.9")
    decay = wrong(**stepping(lambda t, g, e: {n: down(t[n], g[n] + t[n].dtype.type(1e-3) * t[n], e.lr) for n in t}))
    yield f("weight decay", "step", decay, "decay by 0.001")
    yield f("loss after the update", "step", wrong(loss_is_from_before=False), "after the update")
    rounded = wrong(**stepping(lambda t, g, e: {n: down(t[n], g[n], float(np.float32(e.lr))) for n in t}))
    yield f("lr in float32", "step", rounded, "passes through float32")
    short = only("train_step", weigh_gradient=of_batch_size)
    yield f("step by batch_size", "step", short, "the experiment's batch size")
    top = wrong(**stepping(lambda t, g, e: {n: t[n] if "fc1" in n else down(t[n], g[n], e.lr) for n in t}))
    yield f("fc1 never updated", "step", top, "`fc1`")

    yield f("tail dropped", "epoch", wrong(training_batches=whole), "last batch is dropped")
    backwards = wrong(training_batches=lambda rows, size: formulas.batches(rows, size)[::-1])
    yield f("batches backwards", "epoch", backwards, "reverse order")
    always = wrong(training_batches=lambda rows, size: formulas.batches(rows, 64))
    yield f("batches always of 64", "epoch", always, "batches are of 64")
    filled = wrong(
        training_batches=lambda rows, size: [
            *whole(rows, size),
            *([slice(max(rows - size, 0), rows)] * (rows % size > 0)),
        ]
    )
    yield f("tail filled up", "epoch", filled, "filled up")
    yield f(
        "epoch ignores lr",
        "epoch",
        only("train_epoch", **stepping(lambda t, g, e: {n: down(t[n], g[n], 1e-3) for n in t})),
        "the rate is always 0.001",
    )
    yield f("float64 epoch in float32", "epoch", narrow("train_epoch"), "float32 where float64")

    yield f(
        "test tail dropped",
        "evaluate",
        wrong(test_batches=lambda rows, size: whole(rows, size) or [slice(0, rows)]),
        "last batch is dropped",
    )
    flat = wrong(test_batches=lambda rows, size: [slice(0, rows)])
    yield f("mean over images", "evaluate", flat, "over images instead of batches")
    tests = wrong(test_batches=lambda rows, size: formulas.batches(rows, 64))
    yield f("tests always in 64", "evaluate", tests, "batches are of 64")
    yield f("accuracy in percent", "evaluate", lambda: numpy_port(evaluate=in_percent), "100 times")
    plain = only("evaluate", applies_softmax=lambda experiment: False)
    yield f("tests ignore softmax_output", "evaluate", plain, "is ignored")
    yield f("trains on the tests", "evaluate", trains_on_tests)

    deep = wrong(
        activation=lambda x, layer: x if layer == "fc2" else formulas.relu(x, layer),
    )
    yield f("tests skip the second ReLU", "evaluate", only_from(deep, "evaluate"), "missing after `fc2`")
    yield f("ties go to the last class", "evaluate", last_of_ties)
    yield f("float64 tests in float32", "evaluate", narrow("evaluate"), "float32")
    yield f("tests cached by shape", "evaluate", tests_cached)

    yield f("no update below a loss of 0.8", "trajectory", content, "does not change")
    yield f("rate halved after 5,000 steps", "trajectory", later(5000))
    yield f("updates stop after 15,000 steps", "trajectory", later(15_000, factor=0.0))
    yield f("rate halved in a later run", "trends", later(40_000, is_global=True))
