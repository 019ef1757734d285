"""What an entry of the catalogue is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

Kind = Literal["forward", "backward", "jvp", "both", "batch", "accuracy"]

KINDS: dict[str, str] = {
    "forward": "changes the forward; the hand-written derivatives stay those of the right one",
    "backward": "changes the cotangents alone; the logits are right",
    "jvp": "changes the tangents alone; the logits and the cotangents are right",
    "both": "sits in a function that the forward and its derivatives share",
    "batch": "treats each image rightly, and a batch wrongly",
    "accuracy": "is the same function over the real numbers, computed with a larger error",
}
"""The kinds, and what each means."""


LEAN = ("vit", "vit-cls")
"""The Lean mirror's models."""
PRACTICAL = ("vision-transformer",)
"""The practical family's."""


@dataclass(frozen=True)
class Patch:
    """A piece of a function's source, and what stands there instead.

    Attributes:
        function: where, as "module:function" below `vitspec`.
        old: source text that occurs in that function exactly once.
        new: what replaces it.
    """

    function: str
    old: str
    new: str


@dataclass(frozen=True)
class Form:
    """How the practical family shows a mistake, where a function of its own does the work.

    Attributes:
        function: where; "": where the Lean mirror has it, and only `derivatives` are the form's.
        old: source text that occurs in that function exactly once; "": the entry's.
        new: what replaces it, where `old` is given.
        also: further patches that belong to the mistake.
        derivatives: as a deviation's.
        kind: if it is not the entry's.
        alias: the name that it had as an entry of its own.
    """

    function: str = ""
    old: str = ""
    new: str = ""
    also: tuple[Patch, ...] = ()
    derivatives: tuple[Patch, ...] | None = None
    kind: Kind | None = None
    alias: str = ""


@dataclass(frozen=True)
class Deviation:
    """One mistake.

    Attributes:
        name: permanent, in kebab case.
        kind: what it changes: a key of `KINDS`.
        function: where, as "module:function" below `vitspec`.
        old: source text that occurs in that function exactly once.
        new: what replaces it.
        description: what is wrong, in words.
        effect: what a user sees of it, and when nothing.
        seen: where it occurs in public: `owner/repository#number` is an issue or a pull request.
        specs: the models in which it can show.
        other_sizes_only: whether it shows only on images of another size than the configuration's,
            for which positions are interpolated.
        also: further patches that belong to the mistake.
        derivatives: patches that make the hand-written derivatives those of the mistaken forward,
            as automatic differentiation would; none if they already are. None: not applicable, or
            not written down.
        practical: its form in the practical family; None if that is the same, patch for patch.
    """

    name: str
    kind: Kind
    function: str
    old: str
    new: str
    description: str
    effect: str = ""
    seen: tuple[str, ...] = ()
    specs: tuple[str, ...] = (*LEAN, *PRACTICAL)
    also: tuple[Patch, ...] = ()
    derivatives: tuple[Patch, ...] | None = None
    other_sizes_only: bool = False
    practical: Form | None = None

    @property
    def patches(self) -> tuple[Patch, ...]:
        """All that is replaced, in every family that shows it."""
        if self.practical is None:
            return (Patch(self.function, self.old, self.new), *self.also)
        return tuple(dict.fromkeys(p for one in self.families for p in one.patches))

    @property
    def alias(self) -> str:
        """Another name under which it is read: its own, once, in the practical family."""
        return self.practical.alias if self.practical else ""

    @property
    def families(self) -> tuple[Deviation, ...]:
        """The mistake as each family shows it: alone, if all have the same functions there."""
        if self.practical is None:
            return (self,)
        return self.of(*LEAN), self.of(*PRACTICAL)

    def of(self, *specs: str) -> Deviation:
        """The mistake as these models of one family show it, with their patches alone."""
        own, form = tuple(spec for spec in self.specs if spec in specs), self.practical
        if form is None or not set(own) & set(PRACTICAL):
            return replace(self, specs=own, practical=None)
        there = Patch(self.function, self.old, self.new)
        if form.function:
            there = Patch(form.function, form.old or self.old, form.new if form.old else self.new)
        return replace(
            self,
            **vars(there),
            kind=form.kind or self.kind,
            specs=own,
            also=form.also if form.function else self.also,
            derivatives=form.derivatives,
            practical=None,
        )

    @property
    def visible_in_model(self) -> bool:
        """Whether, on general inputs, it changes logits or cotangents of one of the models."""
        return bool(self.specs) and self.kind not in ("jvp", "accuracy")

    def differentiated(self) -> Deviation | None:
        """The same mistake in an implementation that has its derivatives from its forward.

        In the families in which the derivatives of the mistaken forward are known: None where in
        none, and for mistakes in the derivatives themselves.
        """
        known = [(one, one.derivatives) for one in self.families if one.derivatives is not None]
        if not known:
            return None
        first, *also = dict.fromkeys(p for one, more in known for p in (*one.patches, *more))
        specs = tuple(spec for one, _ in known for spec in one.specs)
        return replace(
            self, **vars(first), specs=specs, also=tuple(also), derivatives=(), practical=None
        )


of_lean = partial(Deviation, specs=LEAN)
of_practical = partial(Deviation, specs=PRACTICAL)
with_cls = partial(Deviation, specs=("vit-cls", *PRACTICAL))
with_mean = partial(Deviation, specs=("vit", *PRACTICAL))
"""Mistakes that not all models can show: of one family, or of a pooling."""
