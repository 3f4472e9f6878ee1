"""JAX without chance: a key with which every random number is drawn as its median."""

from typing import Any


def median_key() -> Any:
    """A key, and keys split from it, by which `uniform` draws just under 1/2, `normal` 0 up to rounding, and a dropout
    of up to 1/2 keeps everything and scales it: chance is gone from a program without a change to it or to a library.
    """
    import jax
    import jax.numpy as jnp
    from jax.extend.random import define_prng_impl

    def keys(shape: tuple[int, ...]) -> Any:
        return jnp.zeros((*shape, 1), jnp.uint32)

    def random_bits(key: Any, width: int, shape: tuple[int, ...]) -> Any:
        return jnp.full(shape, (1 << (width - 1)) - 1, jnp.dtype(f"uint{width}"))

    median = define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: keys(()),
        split=lambda key, shape: keys(shape),
        random_bits=random_bits,
        fold_in=lambda key, data: key,
        name="median",
    )
    return jax.random.key(0, impl=median)
