"""Ways to try a mistake on a reference: calls, modules, optimizers or the whole program do something else."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from parity.mistakes.mistake import Scale, Subject, Tries, Try
from parity.reference.program import Reference
from parity.reference.rewrite import Call, Edit, Rewrite, Site, edited, places


def calls(
    functions: str,
    change: Callable[[Call, Any], Any],
    values: tuple[Any, ...] = (None,),
    fit: Scale | None = None,
    was: Callable[[Call], Any] = lambda call: None,
    when: Callable[[Call], bool] = lambda call: True,
) -> Tries:
    """Calls of some functions do something else: everywhere, at all places of a kind, at each place alone.

    Args:
        functions: names as in `Site.function`, separated by blanks.
        change: the result of a call with the mistake in it.
        values: those of `change`'s second argument to try first.
        fit: how to solve for it where none of them explains.
        was: the reference's own value.
        when: which calls can have the mistake.
    """
    names = frozenset(functions.split())

    def tries(subject: Subject) -> Iterator[Try]:
        found = [site for site, call in subject.calls.items() if site.function in names and when(call)]
        for name, group in places(found):
            own = was(subject.calls[next(site for site in found if site in group)])
            yield Try(
                subject.where(group, name),
                lambda value, group=group: edited(Edit(group, lambda call: change(call, value))),  # type: ignore[misc]
                tuple(value for value in values if value is None or value != own),
                fit,
                own,
                len(group),
            )

    return tries


def at(
    find: Callable[[Subject], Iterable[Site]],
    make: Callable[[Any], Callable[[Call], Any]],
    values: tuple[Any, ...] = (None,),
    fit: Scale | None = None,
    was: Any = None,
) -> Tries:
    """Calls that have to be looked for do something else; `make` may keep in mind what an earlier one was given."""

    def tries(subject: Subject) -> Iterator[Try]:
        for name, group in places(list(find(subject))):
            yield Try(
                subject.where(group, name),
                lambda value, group=group: edited(Edit(group, make(value))),  # type: ignore[misc]
                values,
                fit,
                was,
                len(group),
            )

    return tries


def argument(functions: str, name: str, default: Any, values: tuple[Any, ...], fit: Scale | None = None) -> Tries:
    """A call's argument has another value."""

    def was(call: Call) -> Any:
        return default if call[name] is None else call[name]

    return calls(functions, lambda call, value: call.run(**{name: value}), values, fit, was)


def setting(
    name: str,
    values: tuple[Any, ...],
    fit: Scale | None = None,
    when: Callable[[torch.optim.Optimizer], bool] = lambda optimizer: True,
    part: int | None = None,
) -> Tries:
    """An optimizer's group setting has another value, `betas` one of its two (`part`)."""

    def tries(subject: Subject) -> Iterator[Try]:
        group = subject.optimizer.param_groups[0]
        if name not in group or not when(subject.optimizer):
            return
        was = group[name] if part is None else group[name][part]

        def rewrite(value: Any) -> Rewrite:
            def change(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
                for group in optimizer.param_groups:
                    if part is None:
                        group[name] = value
                    else:
                        group[name] = tuple(value if at == part else one for at, one in enumerate(group[name]))
                return optimizer

            return optimized(change)

        yield Try("the optimizer", rewrite, tuple(value for value in values if value != was), fit, was)

    return tries


def optimized(change: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]) -> Rewrite:
    """A reference whose optimizer is changed, or replaced, once it is made."""
    return lambda reference: replace(reference, optimizer=lambda module: change(reference.optimizer(module)))


@dataclass(frozen=True)
class Together:
    """Calls that belong together, in one run of the module that they are in."""

    calls: tuple[Call, ...]
    """As they were first seen."""
    kept: dict[str, Any]
    """What an earlier one of them has left for a later one."""


def together(
    find: Callable[[Subject], Iterable[tuple[Site, ...]]],
    change: Callable[[Call, int, Together, Any], Any],
    values: tuple[Any, ...] = (None,),
    fit: Scale | None = None,
) -> Tries:
    """Several calls that belong together do something else: everywhere, at all places of a kind, at each place alone.

    Args:
        find: sites that belong together; the first of them is their place.
        change: the result of a call, which is told which of them it is, with the mistake in it.
        values: those of `change`'s last argument to try first.
        fit: how to solve for it where none of them explains.
    """

    def tries(subject: Subject) -> Iterator[Try]:
        found = {group[0]: group for group in find(subject)}
        for name, firsts in places(list(found)):
            roles = {site: (first, at) for first in firsts for at, site in enumerate(found[first])}

            def rewrite(value: Any, firsts: frozenset[Site] = firsts, roles: dict[Site, Any] = roles) -> Rewrite:
                groups = {first: Together(tuple(subject.calls[site] for site in found[first]), {}) for first in firsts}

                def act(call: Call) -> Any:
                    first, at = roles[call.site]
                    return change(call, at, groups[first], value)

                return edited(Edit(frozenset(roles), act))

            yield Try(subject.where(firsts, name), rewrite, values, fit, None, len(firsts))

    return tries


def modules(
    change: Callable[[nn.Module, Any], object],
    when: Callable[[nn.Module], bool],
    values: tuple[Any, ...] = (None,),
    fit: Scale | None = None,
    was: Callable[[nn.Module], Any] = lambda module: None,
) -> Tries:
    """Modules are changed once they are made: all of a kind, those of a class, each alone.

    Args:
        change: what is done to a fresh module, with a value: another setting, another `forward`.
        when: which modules can have the mistake.
        values: those of `change`'s second argument to try first.
        fit: how to solve for it where none of them explains.
        was: the reference's own value.
    """

    def tries(subject: Subject) -> Iterator[Try]:
        parts = dict(subject.module.named_modules())
        found = {Site("", name, type(part).__name__, 0): part for name, part in parts.items() if when(part)}
        for name, group in places(list(found)):
            names = {site.module for site in group}
            own = was(found[next(site for site in found if site in group)])

            def rewrite(value: Any, names: set[str] = names) -> Rewrite:
                return changed(names, lambda part: change(part, value))

            inside = frozenset(site for site in subject.calls if site.module in names)
            kept = tuple(value for value in values if value is None or value != own)
            yield Try(subject.where(inside, name), rewrite, kept, fit, own, len(group))

    return tries


def changed(names: Iterable[str], change: Callable[[nn.Module], object]) -> Rewrite:
    """A reference some of whose modules are changed, once they are made."""

    def rewrite(reference: Reference) -> Reference:
        def module() -> nn.Module:
            made = reference.module()
            for name in names:
                change(made.get_submodule(name))
            return made

        return replace(reference, module=module)

    return rewrite


def program(
    rewrite: Callable[[Reference, Any], Reference],
    values: tuple[Any, ...] = (None,),
    fit: Scale | None = None,
    place: str = "the program",
    was: Any = None,
    when: Callable[[Subject], bool] = lambda subject: True,
) -> Tries:
    """The whole reference is another one: its optimizer, schedule, clipping, batches, epoch."""

    def tries(subject: Subject) -> Iterator[Try]:
        if when(subject):
            yield Try(
                place,
                lambda value: lambda reference: rewrite(reference, value),
                tuple(value for value in values if value is None or value != was),
                fit,
                was,
            )

    return tries


def several(*ways: Tries) -> Tries:
    """Any of these ways of looking for a mistake."""

    def tries(subject: Subject) -> Iterator[Try]:
        for way in ways:
            yield from way(subject)

    return tries
