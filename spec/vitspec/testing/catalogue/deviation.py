"""What an entry of the catalogue is."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """

    name: str
    kind: Kind
    function: str
    old: str
    new: str
    description: str
    effect: str = ""
    seen: tuple[str, ...] = ()
    specs: tuple[str, ...] = ("vit", "vit-cls")
    also: tuple[Patch, ...] = ()
    derivatives: tuple[Patch, ...] | None = None
    other_sizes_only: bool = False

    @property
    def patches(self) -> tuple[Patch, ...]:
        """All that is replaced."""
        return (Patch(self.function, self.old, self.new), *self.also)

    @property
    def visible_in_model(self) -> bool:
        """Whether, on general inputs, it changes logits or cotangents of one of the models."""
        return bool(self.specs) and self.kind not in ("jvp", "accuracy")

    def differentiated(self) -> Deviation | None:
        """The same mistake in an implementation that has its derivatives from its forward.

        None where the derivatives of the mistaken forward are not known, and for mistakes in the
        derivatives themselves.
        """
        if self.derivatives is None:
            return None
        return replace(self, also=(*self.also, *self.derivatives), derivatives=())
