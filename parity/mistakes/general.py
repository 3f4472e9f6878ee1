"""Experiments for what is in no catalogue: one call's result scaled, left out, or kept from the gradient."""

from parity.mistakes.mistake import Mistake
from parity.mistakes.tries import calls

_COMPUTED = (
    "linear matmul softmax mul add sub div conv2d conv1d conv_transpose2d layer_norm group_norm batch_norm rms_norm "
    "embedding tanh sigmoid silu gelu relu mean sum einsum interpolate exp log sqrt rsqrt pow cross_entropy mse_loss "
    "smooth_l1_loss huber_loss l1_loss kl_div binary_cross_entropy_with_logits normalize cosine_similarity"
)

GENERAL = (
    Mistake(
        "",
        "scaled-result",
        "what {place} computes is × {value} in the port",
        "",
        (),
        (),
        calls(_COMPUTED, lambda call, value: call.run() * value, (0.0, 0.5, 2.0, -1.0), "linear", lambda call: 1.0),
    ),
    Mistake(
        "",
        "stopped-gradient",
        "the gradient does not pass through what {place} computes in the port",
        "",
        (),
        (),
        calls(_COMPUTED, lambda call, _: call.run().detach()),
    ),
)
