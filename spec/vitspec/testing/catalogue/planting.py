"""Running the specification with mistakes in it.

A planted function is compiled from its patched source in its own module's globals, so it calls what
that module calls: mistakes planted in its callees act as well. A method is planted in its class,
"module:Class.method", and an activation in the table of activations too. Nothing on disk changes.
Planting is for one thread at a time, since modules are shared.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Protocol, cast

from vitspec.layers.gelu import ACTIVATIONS, Pair
from vitspec.testing.catalogue.deviation import Patch


class Plantable(Protocol):
    """What can be planted: a deviation, or a correct variant."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def patches(self) -> tuple[Patch, ...]:
        """What is replaced."""


class ConflictError(LookupError):
    """Two deviations change the same piece of the specification."""


@dataclass(frozen=True)
class _Planted:
    """What stands in a function's place."""

    original: Callable[..., Any]
    current: Callable[..., Any]
    patches: tuple[tuple[str, Patch], ...]  # with the names of their deviations


_now: dict[str, _Planted] = {}


@contextmanager
def planted(*deviations: Plantable) -> Iterator[None]:
    """Run the specification with these mistakes in it, on top of those that are planted already.

    Raises:
        ConflictError: two of them change the same text.
        LookupError: the specification has changed, and the catalogue has not.
    """
    wanted: dict[str, tuple[tuple[str, Patch], ...]] = {}
    for deviation in deviations:
        for patch in deviation.patches:
            wanted[patch.function] = (*wanted.get(patch.function, ()), (deviation.name, patch))
    before = {function: _now.get(function) or _unpatched(function) for function in wanted}
    after = {
        function: _Planted(
            old.original,
            _compiled(old.original, function, old.patches + wanted[function]),
            old.patches + wanted[function],
        )
        for function, old in before.items()
    }
    _exchange(before, after)
    try:
        yield
    finally:
        _exchange(after, before)


@contextmanager
def replaced(
    function: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Run the specification with one of its functions wrapped into another."""
    before = {function: _now.get(function) or _unpatched(function)}
    old = before[function]
    after = {function: _Planted(old.original, wrap(old.current), old.patches)}
    _exchange(before, after)
    try:
        yield
    finally:
        _exchange(after, before)


@contextmanager
def nothing_planted() -> Iterator[None]:
    """Run the specification as it is, whatever is planted around this."""
    before = dict(_now)
    after = {name: _Planted(old.original, old.original, ()) for name, old in before.items()}
    _exchange(before, after)
    try:
        yield
    finally:
        _exchange(after, before)


def anything_planted() -> bool:
    """Whether the specification runs with something planted in it."""
    return bool(_now)


def _unpatched(function: str) -> _Planted:
    holder, name = _holder(function)
    original = getattr(holder, name)
    return _Planted(original, original, ())


def _holder(function: str) -> tuple[Any, str]:
    """The module, or the class in it, that a function belongs to, and its name there."""
    module_name, function_name = function.split(":")
    holder: Any = importlib.import_module(f"vitspec.{module_name}")
    *class_name, name = function_name.split(".")
    return (getattr(holder, class_name[0]) if class_name else holder), name


def _exchange(there: dict[str, _Planted], here: dict[str, _Planted]) -> None:
    """Put `here` wherever `there` is held: modules hold functions by name, their own or not."""
    changes = {id(there[name].current): here[name].current for name in there}
    for names, functions in _held(len(sys.modules)):
        for name in functions:
            if id(names[name]) in changes:
                names[name] = changes[id(names[name])]
    activations = cast(dict[str, Pair], ACTIVATIONS)
    for name, pair in activations.items():
        activations[name] = Pair(*(changes.get(id(f), f) for f in pair))
    for where, planting in here.items():
        holder, name = _holder(where)
        if isinstance(holder, type):  # a method, which no module holds
            setattr(holder, name, planting.current)
    for name, planting in here.items():
        if planting.patches:
            _now[name] = planting
        else:
            _now.pop(name, None)


@lru_cache(maxsize=1)
def _held(modules: int) -> list[tuple[dict[str, Any], list[str]]]:
    """The names of every module, and which of them are functions of the specification.

    They are looked for again when another number of modules has been imported.
    """
    found = []
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("vitspec"):
            names = vars(module)
            own = [n for n, v in names.items() if inspect.isfunction(v)]
            found.append((names, own))
    return found


@cache
def _compiled(
    original: Callable[..., Any], function: str, patches: tuple[tuple[str, Patch], ...]
) -> Callable[..., Any]:
    module_name = function.split(":")[0]
    source = text = inspect.getsource(inspect.unwrap(original))
    for i, (name, patch) in enumerate(patches):
        if source.count(patch.old) != 1:
            raise LookupError(
                f"{name}: expected {patch.old!r} once in {function}, found it "
                f"{source.count(patch.old)} times; the catalogue is out of date"
            )
        if text.count(patch.old) != 1:
            others = ", ".join(dict.fromkeys(other for other, _ in patches[:i]))
            raise ConflictError(
                f"{name} cannot be planted together with {others}: in {function}, "
                f"{patch.old!r} has been replaced already"
            )
        text = text.replace(patch.old, patch.new)
    label = f"<{'+'.join(dict.fromkeys(name for name, _ in patches))}>"
    flags = __future__.annotations.compiler_flag
    code = compile(textwrap.dedent(text), label, "exec", flags, dont_inherit=True)
    scope: dict[str, Any] = {}
    exec(code, vars(sys.modules[f"vitspec.{module_name}"]), scope)
    return scope[original.__name__]
