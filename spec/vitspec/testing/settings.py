"""What to check, declared once: for `check`, for `vitspec check`, and for the pages."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any

from vitspec.config_text import config_argument
from vitspec.testing.families import Config

WHAT, HOW = "What to check", "How"
"""The groups of options."""


def _option(words: str, panel: str = WHAT, **how: Any) -> dict[str, Any]:
    """What `vitspec check --help` and the pages say of a field of `Settings`, and its limits.

    Args:
        words: one sentence.
        panel: the group of options that it stands in.
        how: `min`, the smallest number; `always`, whether a printed command names it even where it
            has its default; `off`, the value with which its kind of check does not run.
    """
    return {"words": words, "panel": panel, **how}


@dataclass(frozen=True, repr=False)
class Settings:
    """What to check; each field is an option of `vitspec check` of the same name."""

    cases: int = field(
        default=100, metadata=_option("Small random configurations each.", min=0, off=0)
    )
    interpolations: int = field(
        default=12,
        metadata=_option(
            "Small cases with images of another size, if it interpolates positions.", min=0, off=0
        ),
    )
    degenerate: bool = field(
        default=True,
        metadata=_option(
            "Points where code breaks: constant rows, blank images, extreme scores.", off=False
        ),
    )
    laws: int = field(
        default=4, metadata=_option("Small cases for the laws and identities.", min=0, off=0)
    )
    photograph: bool = field(
        default=True,
        metadata=_option("The photograph, ViT-Base/16 at full size; alone, if typed.", off=False),
    )
    vectors: bool = field(default=True, metadata=_option("The shipped test vectors.", off=False))
    ill_formed: bool = field(
        default=True, metadata=_option("That ill-formed configurations are refused.", off=False)
    )
    identities: bool = field(
        default=False, metadata=_option("Only what needs no specification: works for any model.")
    )
    config: Config | None = field(
        default=None,
        metadata=_option(
            "Only this configuration: a JSON file, base, large, or key=value,...; of the practical "
            "family, PRESET,key=value,... (hf-vit-base, d2l, ...)."
        ),
    )
    only: str | None = field(
        default=None, metadata=_option("Only checks of this name; may have *.")
    )
    case: tuple[int, ...] = field(
        default=(), metadata=_option("Only the small case of this number; repeatable.", min=0)
    )
    interpolation: tuple[int, ...] = field(
        default=(),
        metadata=_option("Only the images of another size of this number; repeatable.", min=0),
    )
    point: tuple[str, ...] = field(
        default=(), metadata=_option("Only the degenerate point of this kind; repeatable.")
    )
    law: tuple[int, ...] = field(
        default=(), metadata=_option("Only the laws' case of this number; repeatable.", min=0)
    )
    vector: tuple[str, ...] = field(
        default=(), metadata=_option("Only this test vector; repeatable.")
    )
    strict: bool = field(
        default=False,
        metadata=_option("An accepted ill-formed configuration is a failure, not just reported."),
    )
    dtype: str | None = field(
        default=None,
        metadata=_option("The precision, if the implementation has several.", HOW, always=True),
    )
    seed: int = field(
        default=0, metadata=_option("What everything is drawn from.", HOW, min=0, always=True)
    )

    def __post_init__(self) -> None:
        """Make tuples of units without repetition; a single number or name may stand alone."""
        for one in fields(self):
            if one.default == ():
                value = getattr(self, one.name)
                several = () if value is None else value
                units = [value] if isinstance(value, Integral | str) else several
                plain = [int(unit) if isinstance(unit, Integral) else unit for unit in units]
                object.__setattr__(self, one.name, tuple(dict.fromkeys(plain)))

    def __repr__(self) -> str:
        """The call that makes it."""
        return call_text(self)

    def wants(self, check: str) -> bool:
        """Whether a check of this name is asked for."""
        return self.only is None or fnmatchcase(check, self.only)

    @property
    def names_units(self) -> bool:
        """Whether single cases, laws or vectors are asked for, and so nothing else is checked."""
        return any(getattr(self, one.name) for one in fields(self) if one.default == ())

    @property
    def whole(self) -> bool:
        """Whether every kind of check is asked for, of the models that the kit chooses."""
        changed = dict(changes(self))
        counts = {one.name for one in fields(self) if type(one.default) is int and one.default}
        return changed.keys() <= counts | {"strict", "seed", "dtype"} and 0 not in changed.values()

    def only_for(self, **what: Any) -> Settings:
        """New settings that keep the configuration, `only` and what says how, and add `what`."""
        names = ("config", "only", "strict", "dtype", "seed")
        return Settings(**{name: getattr(self, name) for name in names} | what)

    def nothing_but(self, **what: Any) -> Settings:
        """Like `only_for`, but every kind of check that is not named here is left out."""
        off = {one.name: one.metadata["off"] for one in fields(self) if "off" in one.metadata}
        return self.only_for(**off | what)

    @property
    def photograph_is_all(self) -> bool:
        """Whether the photograph is asked for, and no other kind of check."""
        return self.photograph and self == self.nothing_but(photograph=True)

    @property
    def photograph_alone(self) -> Settings:
        """The photograph, and of other kinds of checks those that were asked for."""
        asked = dict(changes(self))
        kinds = {one.name: one.metadata["off"] for one in fields(self) if "off" in one.metadata}
        off = {name: value for name, value in kinds.items() if name not in asked}
        return replace(self, **off | {"photograph": True})

    def as_options(self) -> str:
        """The options of `vitspec check` that say the same, as one types them."""
        words: list[str] = []
        for one in sorted(fields(self), key=lambda one: not one.metadata.get("always")):
            name, value = f"--{one.name.replace('_', '-')}", getattr(self, one.name)
            if self.photograph_is_all and "off" in one.metadata:
                words += [name] if one.name == "photograph" else []
                continue
            if value is None or (value == one.default and not one.metadata.get("always")):
                continue
            if isinstance(value, bool):
                words.append(name if value else f"--no-{one.name.replace('_', '-')}")
            elif isinstance(value, tuple):
                words += [word for item in value for word in (name, str(item))]
            else:
                text = value if isinstance(value, str | int) else config_argument(value)
                words += [name, str(text)]
        return shlex.join(words)


def changes(record: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass that differ from their defaults, and their values."""
    for one in fields(record):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if (value := getattr(record, one.name)) != default:
            yield one.name, value


def call_text(record: Any) -> str:
    """The call that makes a dataclass, in Python: what differs from the defaults."""
    said = [
        f"{name}={call_text(value) if is_dataclass(value) else repr(value)}"
        for name, value in changes(record)
    ]
    return f"{type(record).__name__}({', '.join(said)})"


def settings_table() -> str:
    """Every option, its default and what it says, as a Markdown table."""
    lines = ["| option | field | default | |", "| --- | --- | --- | --- |"]
    for one in fields(Settings):
        name = f"--{one.name.replace('_', '-')}"
        switch = f"{name}, --no-{name[2:]}" if one.default is True else name
        default = "" if one.default in (None, ()) else repr(one.default)
        lines.append(f"| `{switch}` | `{one.name}` | {default} | {one.metadata['words']} |")
    return "\n".join(lines)


Settings.__doc__ = f"{Settings.__doc__}\n\nAttributes:\n" + "\n".join(
    f"    {one.name}: {one.metadata['words']}" for one in fields(Settings)
)

QUICK = Settings(cases=8, interpolations=3, photograph=False, vectors=False)
"""What `check` does by default: some seconds."""
