"""Adam and its kin: epsilon, betas, and the correction of their moments."""

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.optimizers import rules
from parity.mistakes.optimizers.kinds import ADAM, ADAMAX, IN_ROOT, by_rule
from parity.mistakes.optimizers.mirrors import REGRESSION_RATE
from parity.mistakes.tries import setting, several

MISTAKES = (
    Mistake(
        "O014",
        "optimizer-epsilon",
        "the epsilon of {place} is {value}, the reference's is {was}",
        "Frameworks differ: 1e-8 (torch, optax), 1e-7 (Keras), 1e-6 and 1e-3 (papers); Adagrad and Adadelta have "
        "others again. It matters for parameters of tiny gradients only, late in training or far from the loss, and "
        "nothing shows where gradients are of size 1.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, eps=1e-7)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, eps=1e-6, "),
            Diff("rnn", "eps=1e-6, eps_in_sqrt=False", "eps=1e-8, eps_in_sqrt=False"),
            Diff("unet", "epsilon: float = 1e-10", "epsilon: float = 1e-7"),
            Diff("decoder", "        b2=0.95,\n", "        b2=0.95,\n        eps=1e-5,\n"),
            Diff("regression", f"optax.adamax({REGRESSION_RATE})", f"optax.adamax({REGRESSION_RATE}, eps=3e-7)"),
        ),
        ("algoperf#307", "HF#35504"),
        setting("eps", (1e-7, 1e-8, 1e-6, 1e-5, 1e-10, 1e-3), "log"),
    ),
    Mistake(
        "O015",
        "adam-epsilon-within-root",
        "Adam's epsilon is within the root, the reference's is added after it",
        "√(v + ε) and √v + ε with the same ε are far apart: 1e-8 within the root is 1e-4 outside of it. optax has "
        "both, `eps` and `eps_root`.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, eps=0.0, eps_root=1e-8)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, eps=0.0, eps_root=1e-8, "),
            Diff("decoder", "        b2=0.95,\n", "        b2=0.95,\n        eps=0.0,\n        eps_root=1e-8,\n"),
        ),
        ("optax documentation: adam, eps_root", "optax#532"),
        by_rule(rules.adam, ADAM, **IN_ROOT),
    ),
    Mistake(
        "O016",
        "adam-epsilon-before-correction",
        "Adam's epsilon is added before the bias correction, the reference's after it",
        "The paper's faster form folds the correction into the learning rate, and TensorFlow follows it: epsilon is "
        "then 1/√(1-β₂ᵗ) times as large, 31.6 times at the first step. Late in training both agree.",
        (
            Diff(
                "convnet",
                "optax.adam(learning_rate)",
                "optax.inject_hyperparams(optax.adam)(learning_rate, "
                "eps=lambda step: 1e-8 / jnp.sqrt(1 - 0.999 ** (step + 1.0)))",
            ),
            Diff(
                "transformer",
                "optax.adamw(learning_rate, weight_decay=0.05, mask=decays)",
                'optax.inject_hyperparams(optax.adamw, static_args="mask")(learning_rate, weight_decay=0.05, '
                "mask=decays, eps=lambda step: 1e-8 / jnp.sqrt(1 - 0.999 ** (step + 1.0)))",
            ),
        ),
        ("torch#22628", "aiqm/torchani#261", "HF#35504", "karpathy/nanochat#304"),
        by_rule(rules.adam, ADAM, epsilon="before the correction"),
    ),
    Mistake(
        "O017",
        "bias-correction-missing",
        "the averages of {place} are not corrected for their start from zero",
        "Without the correction Adam's first step is (1-β₁)/√(1-β₂) = 3.16 times as long, Adamax's a tenth. It fades "
        "within some hundred steps, of which the network may not recover.",
        (
            Diff(
                "convnet",
                "optax.adam(learning_rate)",
                "optax.chain(optax.inject_hyperparams(optax.adam)(learning_rate, "
                "eps=lambda step: 1e-8 / jnp.sqrt(1 - 0.999 ** (step + 1.0))),\n"
                "    optax.scale_by_schedule(lambda step: (1 - 0.9 ** (step + 1.0)) / "
                "jnp.sqrt(1 - 0.999 ** (step + 1.0))))",
            ),
            Diff(
                "regression",
                f"optax.adamax({REGRESSION_RATE})",
                f"optax.adamax({REGRESSION_RATE}),\n"
                "        optax.scale_by_schedule(lambda step: 1 - 0.9 ** (step + 1.0))",
            ),
        ),
        ("mlx#1640", "mlx#1153", "mlx#1623", "unsloth-zoo#819"),
        several(by_rule(rules.adam, ADAM, uncorrected=True), by_rule(rules.adamax, ADAMAX, uncorrected=True)),
    ),
    Mistake(
        "O018",
        "beta1",
        "beta1 of {place} is {value}, the reference's is {was}",
        "The decay of the mean of gradients: 0.9 nearly everywhere, 0.5 or 0 for adversarial networks. The first "
        "update is the same whatever it is, so that a test of one step tells nothing.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, b1=0.5)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, b1=0.8, "),
            Diff("regression", f"optax.adamax({REGRESSION_RATE})", f"optax.adamax({REGRESSION_RATE}, b1=0.85)"),
        ),
        ("optax documentation: adam, b1",),
        setting("betas", (0.9, 0.5, 0.95, 0.0), "linear", part=0),
    ),
    Mistake(
        "O019",
        "beta2",
        "beta2 of {place} is {value}, the reference's is {was}",
        "The decay of the mean of squares: 0.999 by default, 0.95 or 0.98 for language models. The first update is the "
        "same whatever it is.",
        (
            Diff("decoder", "        b2=0.95,\n", "        b2=0.999,\n"),
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, b2=0.99)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, b2=0.98, "),
            Diff("regression", f"optax.adamax({REGRESSION_RATE})", f"optax.adamax({REGRESSION_RATE}, b2=0.9)"),
        ),
        ("optax documentation: adam, b2",),
        setting("betas", (0.999, 0.95, 0.99, 0.98), "linear", part=1),
    ),
    Mistake(
        "O036",
        "moments-in-bfloat16",
        "the moments of {place} are kept in bfloat16",
        "`mu_dtype` saves memory and loses what is smaller than 1/256 of a moment; parameters in bfloat16 lose updates "
        "altogether. The first step is right. It is caught, but not named: XLA rounds within the product, which a "
        "rewrite in exact arithmetic cannot follow.",
        (
            Diff("convnet", "optax.adam(learning_rate)", "optax.adam(learning_rate, mu_dtype=jnp.bfloat16)"),
            Diff("transformer", "optax.adamw(learning_rate, ", "optax.adamw(learning_rate, mu_dtype=jnp.bfloat16, "),
        ),
        ("TensorAuto/OpenTau#182",),
    ),
)
