"""The page `docs/catalogue.md`, which `vitspec catalogue --markdown` prints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from textwrap import dedent, fill

from vitspec.testing.catalogue.deviation import KINDS, LEAN, PRACTICAL, Deviation, Patch
from vitspec.testing.catalogue.entries import EVERY, GROUPS, LATER_GROUPS, PRACTICAL_GROUPS

_WIDTH = 100

_INTRODUCTION = """\
# The catalogue of named deviations

Mistakes that people make in a Vision Transformer, each as a patch of the specification. The kit
plants them to test itself, to name what an implementation's errors look like, and to admit test
vectors that tell them apart.

```python
>>> from vitspec.testing.catalogue import deviation, planted
>>> with planted(deviation("pre-norm"), deviation("activation-gelu")):
...     pass  # the specification runs with both

```

Names are permanent. Most entries were found in public code: `owner/repository#number` is an issue
or a pull request on GitHub that reports the mistake or mends it, or shows how it comes about; it
says nothing of that project today. Where nothing was found, the entry says so.

A mistake in the forward is planted alone: the hand-written derivatives stay as they are.
`deviation(name).differentiated()` is the same mistake in an implementation that has its derivatives
from its forward, by automatic differentiation; "derivatives follow" marks the entries that have it.

A mistake has one name in both families, the Lean mirror's models and the practical family
(`VisionTransformer`). Where they call the same function, it is one patch; where each has its own,
the entry shows the Lean mirror's first. `deviations_of("vision-transformer")` lists all that can
show in the practical family, as they are planted there. The last groups are of that family alone;
those of interpolated positions show on images of another size than the configuration's only
(`other_sizes=True`). Names of old entries that were merged with others are still read.
"""

_GROUPS = GROUPS | PRACTICAL_GROUPS | LATER_GROUPS
_REFERENCE = re.compile(r"(?<![\w/.-])([\w.-]+/[\w.-]+)#(\d+)")


def catalogue_markdown() -> str:
    """The page of all deviations."""
    return "\n".join([_INTRODUCTION, *_kinds(), *_contents(), *_entries()])


def _kinds() -> Iterator[str]:
    counts = Counter(str(d.kind) for d in EVERY)
    yield "| kind | entries | the mistake |\n| --- | --- | --- |"
    yield from (f"| {kind} | {counts[kind]} | {text} |" for kind, text in KINDS.items())
    yield ""


def _contents() -> Iterator[str]:
    yield f"{len(EVERY)} entries:\n"
    for group, entries in _GROUPS.items():
        names = ", ".join(f"[{d.name}](#{d.name})" for d in entries)
        yield f"- **{group}**: {names}"
    yield ""


def _entries() -> Iterator[str]:
    for group, entries in _GROUPS.items():
        yield f"## {group}\n"
        for d in entries:
            yield f"### {d.name}\n"
            yield _wrapped(f"*{', '.join(_labels(d))}.* {_sentence(d.description)} {d.effect}")
            yield _wrapped(_linked(_seen(d)))
            yield f"```diff\n{_diff(d)}\n```\n"


def _labels(d: Deviation) -> list[str]:
    labels: list[str] = [d.kind, _models(d.specs)]
    if d.other_sizes_only:
        labels.append("other sizes only")
    known = d.differentiated() if d.specs else None
    if known is not None:
        some = f" {_models(known.specs)}" if known.specs != d.specs else ""
        labels.append(f"derivatives follow{some}")
    if d.alias:
        labels.append(f"also read as `{d.alias}`")
    return labels


def _models(specs: tuple[str, ...]) -> str:
    some = ", ".join(f"`{spec}`" for spec in specs)
    return f"in {'all models' if set(specs) == {*LEAN, *PRACTICAL} else some or 'no model'}"


def _seen(d: Deviation) -> str:
    seen = "; ".join(d.seen)
    return _sentence(seen if seen.startswith("not seen") else f"Seen: {seen}")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _wrapped(text: str) -> str:
    return fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def _linked(text: str) -> str:
    return _REFERENCE.sub(r"[\1#\2](https://github.com/\1/issues/\2)", text)


def _diff(d: Deviation) -> str:
    """The patches, function by function; the derivatives' own are left out."""
    return "\n".join(_patch(patch) for patch in d.patches)


def _patch(patch: Patch) -> str:
    lines = [f"@@ {patch.function} @@"]
    lines += [f"- {line}" for line in _lines(patch.old)]
    lines += [f"+ {line}" for line in _lines(patch.new)]
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    # The first line of a patch starts in the middle of a line: only the others are indented.
    first, _, rest = text.partition("\n")
    return [first, *dedent(rest).splitlines()] if rest else [first]
