"""Dropout: its rate, its scale, its masks, and when there is none."""

from parity.mistakes.mistake import Diff, Mistake
from parity.mistakes.tries import argument, calls

KEPT = "partial(nn.Dropout(self.dropout), deterministic=deterministic)"

MISTAKES = (
    Mistake(
        "T014",
        "dropout-left-in",
        "dropout is on where it has to be off",
        "deterministic=False, or a default of it, in an evaluation. Two evaluations of one state differ, unless the "
        "key is fixed; then they agree with each other, and with nothing else. It is caught by the size of the "
        "difference; which units are dropped is chance, so that it takes a port that keeps everything and scales it "
        "to be named.",
        (
            Diff(
                "mlp",
                'batch["images"], not train or rng is None, rngs=rngs)',
                'batch["images"], False, rngs={"dropout": jax.random.key(0)})',
            ),
            Diff(
                "transformer",
                "tokens, not train or rng is None, rngs=rngs)",
                'tokens, False, rngs={"dropout": jax.random.key(0)})',
            ),
            Diff(
                "rnn",
                "*inputs, not train or rng is None, rngs=rngs)",
                '*inputs, False, rngs={"dropout": jax.random.key(0)})',
            ),
            Diff(
                "regression",
                "train, not train or rng is None, rngs=rngs,",
                'train, False, rngs={"dropout": jax.random.key(0)},',
            ),
        ),
        ("flax: NNX, Module.train and Module.eval", "flax: Dropout, deterministic"),
        calls("dropout", lambda call, _: call.run(training=True)),
    ),
    Mistake(
        "T015",
        "dropout-scales-in-evaluation",
        "with dropout off {place} multiplies by {value}, the reference's leaves values as they are",
        "The paper multiplies by the share that is kept in evaluation, all frameworks divide by it in training. Who "
        "writes dropout by hand after the paper, and loads a network trained the other way, scales every layer twice.",
        (
            Diff("mlp", KEPT, "(lambda x: x * (1 - self.dropout) if deterministic else x)"),
            Diff(
                "transformer",
                f"dropout = {KEPT}",
                "dropout = (lambda x: x * (1 - self.dropout) if deterministic else x)",
            ),
            Diff("rnn", KEPT, "(lambda x: x * (1 - self.dropout) if deterministic else x)"),
            Diff(
                "regression",
                "nn.Dropout(self.dropout)(x, deterministic=deterministic)",
                "x * (1 - self.dropout) if deterministic else x",
            ),
        ),
        ("Srivastava et al. 2014, section 10", "torch: Dropout"),
        calls(
            "dropout",
            lambda call, value: call["input"] if call["training"] else call["input"] * value,
            (0.9, 0.5, 0.8),
            "linear",
            lambda call: 1.0,
        ),
    ),
    Mistake(
        "T016",
        "dropout-rate",
        "{place} drops with a rate of {value}, the reference with {was}",
        "The argument is what is dropped in torch and flax, and what is kept in TensorFlow 1 and Haiku's past: 0.9 "
        "for 0.1. It shows in training alone, and takes a port that keeps everything and scales it to be seen.",
        (
            Diff("", "nn.Dropout(0.1)", "nn.Dropout(0.9)"),
            Diff("mlp", "nn.Dropout(self.dropout)", "nn.Dropout(0.5)"),
            Diff("transformer", "dropout = partial(nn.Dropout(self.dropout)", "dropout = partial(nn.Dropout(0.5)"),
            Diff("rnn", "nn.Dropout(self.dropout)", "nn.Dropout(0.5)"),
            Diff("regression", "nn.Dropout(self.dropout)", "nn.Dropout(0.5)"),
        ),
        ("algorithmic-efficiency#753", "algorithmic-efficiency#884", "torch: Dropout, p"),
        argument("dropout", "p", 0.5, (0.5, 0.1, 0.2, 0.9, 0.8), "linear"),
    ),
    Mistake(
        "T017",
        "dropout-forgotten",
        "there is no dropout at {place}, as there is in the reference",
        "Nothing fails without it: evaluation is the same, training is better at first, and the network overfits "
        "later. It takes a port that keeps everything and scales it to be seen.",
        (
            Diff("", "dropout(nn.relu(x))", "nn.relu(x)"),
            Diff("mlp", "dropout(nn.relu(dense(", "(nn.relu(dense("),
            Diff("transformer", "dropout(SelfAttention(", "(SelfAttention("),
            Diff("rnn", "(dropout(mean))", "(mean)"),
            Diff("regression", "x = nn.Dropout(self.dropout)(x, deterministic=deterministic)", "pass"),
        ),
        ("algorithmic-efficiency#677", "invariant-point-attention#7"),
        calls("dropout", lambda call, _: call["input"]),
    ),
    Mistake(
        "T019",
        "same-units-dropped",
        "the same units are dropped at every step",
        "A key that is made once, outside of the step, or closed over by jit gives the same mask for ever: a smaller "
        "network is trained. Which units are dropped is chance, so that exams without chance do not see it, and it "
        "cannot be named yet: compare two steps' masks.",
        (
            Diff(
                "",
                "rng=jax.random.fold_in(key, step)",
                "rng=key",
            ),
        ),
        ("axon#423", "flax#2631", "flax#3115"),
    ),
    Mistake(
        "T020",
        "dropout-mask-shared",
        "one mask is used for all heads and examples",
        "flax's attention has broadcast_dropout=True by default: one mask over queries and keys for every head and "
        "example, where torch draws each of them. Which weights are dropped is chance, so that exams without chance "
        "do not see it, and it cannot be named yet.",
        (
            Diff(
                "", "nn.MultiHeadDotProductAttention(4, broadcast_dropout=False)", "nn.MultiHeadDotProductAttention(4)"
            ),
        ),
        ("flax: MultiHeadDotProductAttention, broadcast_dropout",),
    ),
)
