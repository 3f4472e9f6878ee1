"""Layouts: how weights are read, cut into parts and handed over."""

from operator import attrgetter

from parity.mistakes.layouts import kernels, loading, parts, reshaping, tying

MISTAKES = tuple(
    sorted(
        (*kernels.MISTAKES, *reshaping.MISTAKES, *loading.MISTAKES, *parts.MISTAKES, *tying.MISTAKES),
        key=attrgetter("code"),
    )
)
