"""The optimizers of `tests/pairs/` as the mirrors there write them."""

MLP = """    optax.add_decayed_weights(5e-4),
    optax.sgd(lambda step: 0.1 * 0.8 ** (step // 2), momentum=0.9, nesterov=True),"""
MLP_RATE = "optax.scale_by_learning_rate(lambda step: 0.1 * 0.8 ** (step // 2)),"
RNN_RATE = "optax.scale_by_learning_rate(lambda step: 2e-3 * 0.9**step),"
RNN = f"""    optax.trace(decay=0.8),  # torch's momentum gathers steps before they meet the learning rate
    {RNN_RATE}"""
CONVNET = """    optax.add_decayed_weights(1e-2, mask=kernels),
    optax.adam(learning_rate),"""
TRANSFORMER = "    optax.adamw(learning_rate, weight_decay=0.05, mask=decays),"
DECODER = """    optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4),
        b1=one_cycle(0.95, 0.85, 0.95),
        b2=0.95,
        weight_decay=0.1,
        mask=decays,
    ),"""
DECODER_ADAM = """    optax.inject_hyperparams(optax.adam)(
        learning_rate=one_cycle(3e-3 / 25, 3e-3, 3e-3 / 25 / 1e4),
        b1=one_cycle(0.95, 0.85, 0.95),
        b2=0.95,
    ),"""
UNET = """    optax.add_decayed_weights(1e-3),
    scale_by_adagrad(rate_decay=0.05),
    optax.scale_by_learning_rate(learning_rate),"""
REGRESSION_RATE = "lambda step: learning_rate * (0.25 + 0.75 * jnp.minimum(step / 3.0, 1.0))"
REGRESSION = f"""        optax.add_decayed_weights(weight_decay),
        optax.adamax({REGRESSION_RATE}),"""
