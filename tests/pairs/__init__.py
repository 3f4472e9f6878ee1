"""Training programs, each in PyTorch and, by other hands, in JAX: right ports, to try a judge of ports on.

A folder is a pair: `program.py` holds the program in PyTorch, `mirror.py` the program in JAX, and `right_1.py` to
`right_5.py` the same by authors of other habits. `python -m tests.pairs.check` compares them all.

`program` exposes `module()`, `loss(module, batch)`, `outputs(module, batch)`, `optimizer(module)`,
`scheduler(optimizer)`, which steps after every step of the optimizer, `batches(seed)` and, where it clips gradients,
`clip(module)`.

A port exposes `model`, `optimizer`, `from_torch(state_dict)`, `to_torch(variables)`,
`outputs(variables, batch, train, rng)`, `loss(variables, batch, train, rng) -> (loss, batch_stats)` and the jitted
`train_step(variables, opt_state, batch, rng) -> (variables, opt_state, loss)`. Its variables are
`{"params": …, "batch_stats": …}`; `optimizer.init(variables["params"])` begins. Without an `rng` nothing drops out.
"""
