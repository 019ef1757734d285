"""What an implementation says of itself, read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vitspec.testing.adapter_errors import AdapterError, guarded, shown
from vitspec.testing.families import FAMILIES
from vitspec.testing.precision import PRECISIONS

EXACTLY, TO_ROUNDING = "exactly", "to rounding"
"""How an implementation may repeat what it computes."""
OPTIONAL = ("vjp", "supports", "closest", "supports_size", "example")
"""Methods that an implementation need not have."""


@dataclass(frozen=True)
class Description:
    """What an implementation says of itself, read once: plain strings, whatever it is.

    Attributes:
        name, version, spec: strings.
        dtypes: the precisions that it names, the default first.
        methods: those of `OPTIONAL` that it has.
        layers: the names of the single layers that it offers besides.
        repeats: `EXACTLY` or `TO_ROUNDING`.
    """

    name: str
    version: str
    spec: str
    dtypes: tuple[str, ...]
    methods: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    repeats: str = EXACTLY

    @property
    def takes_other_sizes(self) -> bool:
        """Whether it says that it takes images of another size than its configuration's."""
        family = FAMILIES.get(self.spec)
        return family is not None and family.interpolates and "supports_size" in self.methods


def describe(implementation: Any) -> Description:
    """What an implementation says of itself.

    Raises:
        AdapterError: it lacks something, or a property of it raised.
    """
    names = ("spec", "dtype", "name", "version", "forward", *OPTIONAL, "layers", "repeats")
    read: dict[str, Any] = {}
    for attribute in names:
        with guarded(f"the implementation's attribute {attribute!r}"):
            read[attribute] = getattr(implementation, attribute, None)
    if problems := list(_problems(read)):
        raise AdapterError("; ".join(problems))
    with guarded("the implementation's attribute 'layers'"):
        layers = frozenset(str.__str__(name) for name in read["layers"] or ())
    return Description(
        name=str.__str__(read["name"]),
        version=str.__str__(read["version"]),
        spec=str.__str__(read["spec"]),
        dtypes=tuple(str.__str__(dtype) for dtype in _several(read["dtype"])),
        methods=frozenset(n for n in OPTIONAL if read[n] is not None),
        layers=layers,
        repeats=EXACTLY if read["repeats"] is None else str.__str__(read["repeats"]),
    )


def _problems(read: Mapping[str, Any]) -> Iterator[str]:
    """What is missing of the attributes and methods that an implementation must have."""
    known = (*FAMILIES, "other")
    if not isinstance(spec := read["spec"], str) or str.__str__(spec) not in known:
        yield f"spec: expected one of {', '.join(known)}, got {shown(spec)}"
    dtypes = _several(read["dtype"])
    if not dtypes or not all(isinstance(d, str) and str.__str__(d) in PRECISIONS for d in dtypes):
        yield f"dtype: expected one of {', '.join(PRECISIONS)}, got {shown(read['dtype'])}"
    elif len(dtypes) > 1 and not all(PRECISIONS[str.__str__(d)].own_type for d in dtypes):
        yield f"dtype: only float64 and float32 can share an object, got {shown(dtypes)}"
    for attribute in ("name", "version"):
        if not isinstance(value := read[attribute], str):
            yield f"{attribute}: expected a string, got {shown(value)}"
    if not callable(read["forward"]):
        yield "forward: expected a method"
    if (repeats := read["repeats"]) is not None and (
        not isinstance(repeats, str) or str.__str__(repeats) not in (EXACTLY, TO_ROUNDING)
    ):
        yield f"repeats: expected {EXACTLY!r} or {TO_ROUNDING!r}, got {shown(repeats)}"
    for method in OPTIONAL:
        if read[method] is not None and not callable(read[method]):
            yield f"{method}: expected a method, or none"


def _several(dtype: Any) -> tuple[Any, ...]:
    return tuple(dtype) if isinstance(dtype, tuple) else (dtype,)
