"""The names of the classes, as config.json has them: `id2label` and `label2id`.

The two need not be inverse to each other: ImageNet has two classes "crane". So both are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitfast.checkpoints.errors import quoted


@dataclass(frozen=True)
class Labels:
    """The name of each class, and the class of each name.

    Attributes:
        names: names[k] is what class k is called.
        ids: the class of a name.
    """

    names: tuple[str, ...]
    ids: Mapping[str, int]

    @classmethod
    def of(cls, names: Sequence[str]) -> Labels:
        """Labels of these names; of one that two classes share, the last class."""
        return cls(tuple(names), {name: k for k, name in enumerate(names)})

    @classmethod
    def default(cls, count: int) -> Labels:
        """What transformers calls classes without a name."""
        return cls.of([f"LABEL_{k}" for k in range(count)])


def read_labels(given: Mapping[str, Any], problems: list[str]) -> Labels | None:
    """The labels of a configuration, or None; what is wrong with them is added to `problems`."""
    names, ids = given.get("id2label"), given.get("label2id")
    if names is None:
        return None
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        problems.append(f"id2label: expected an object of names by class, got {quoted(names)}")
        return None
    count = len(names)
    if {*names} != {str(k) for k in range(count)}:
        problems.append(f"id2label: expected the {count} classes 0 to {count - 1}, each once")
        return None
    labels = Labels.of([names[str(k)] for k in range(count)])
    if ids is None:
        return labels
    if not isinstance(ids, dict):
        problems.append(f"label2id: expected an object of classes by name, got {quoted(ids)}")
        return None
    found = {name: _class(value, count) for name, value in ids.items()}
    if wrong := [name for name, k in found.items() if k is None]:
        problems.append(
            f"label2id: expected classes from 0 to {count - 1}; not so: "
            + ", ".join(quoted(name) for name in wrong[:10])
            + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        )
        return None
    return Labels(labels.names, {name: k for name, k in found.items() if k is not None})


def _class(value: object, count: int) -> int | None:
    """The class that is meant, which early files write as a text; None if there is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    return value if type(value) is int and 0 <= value < count else None
