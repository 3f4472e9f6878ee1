"""Layers: norms, activations, convolutions, pools."""

from .mistake import Diff, Mistake, argument, calls

MISTAKES = (
    Mistake(
        "F001",
        "layer-norm-epsilon",
        "the epsilon of {place} is {value}, the reference's is {was}",
        "flax.linen.LayerNorm adds 1e-6 to the variance, torch's adds 1e-5, and papers use others again. On inputs of "
        "unit variance the outputs differ by five parts in a million, which every usual tolerance lets through; on "
        "rows of small variance they differ by percents.",
        (Diff("transformer", "epsilon=1e-5", "epsilon=1e-6"),),
        ("kornia#2786", "candle#271"),
        argument("layer_norm", "eps", 1e-5, (1e-6, 1e-5, 1e-3, 1e-8, 1e-12), "log"),
    ),
    Mistake(
        "F002",
        "gelu-by-tanh",
        "GELU at {place} is computed by tanh, the reference's is exact",
        "jax.nn.gelu approximates by tanh unless told approximate=False; torch's default is exact. They differ by "
        "4.7e-4 at most, at |x| = 2.7.",
        (Diff("transformer", "approximate=False", "approximate=True"),),
        ("jax#4428", "gemma_pytorch#33"),
        calls(
            "gelu",
            lambda call, _: call.run(approximate="tanh"),
            when=lambda call: call["approximate"] in (None, "none"),
        ),
    ),
)
