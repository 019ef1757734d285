"""The stored tensors that are a configuration's parameters, and all that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from vitfast.checkpoints.errors import InvalidTensors, quoted
from vitfast.checkpoints.names import GROUPS, LAYER_FORMS, Architecture, Layout
from vitfast.checkpoints.stored import FLOATS, StoredTensor
from vitspec.models.vision_transformer_parameters import Shapes, parameter_shapes
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

_LAYER_NUMBER = re.compile("|".join(rf"{re.escape(form)}([0-9]+)\." for form in LAYER_FORMS))


class Parameters(Mapping[str, Array]):
    """Arrays by flat name that are read from their files each time that they are asked for.

    Nothing is kept, so that no second copy of a model exists while its parameters go elsewhere, one
    after the other. `shape` and `dtype` read nothing.
    """

    def __init__(self, shapes: Shapes, places: Mapping[str, tuple[StoredTensor, Layout]]) -> None:
        self._shapes, self._places = shapes, places

    def __getitem__(self, name: str) -> Array:
        stored, layout = self._places[name]
        return layout.to_ours(stored.load())

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a parameter; without reading it."""
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        """The scalar type of a parameter."""
        return FLOATS[self._places[name][0].dtype]


def match(
    config: VisionTransformerConfig,
    architecture: Architecture,
    stored: Mapping[str, StoredTensor],
    *,
    where: str,
    leave_out: bool,
    allow_nonfinite: bool,
) -> tuple[Parameters, tuple[str, ...]]:
    """The parameters of this configuration among the stored tensors.

    Args:
        config: the configuration, which is well-formed.
        architecture: the class of the model.
        stored: every tensor of the checkpoint.
        where: begins the message of an error.
        leave_out: whether tensors of heads that the configuration does not have may stay behind.
        allow_nonfinite: whether NaN and infinity are weights.

    Returns:
        The parameters, and the stored names of what was left out.

    Raises:
        InvalidTensors: any tensor is missing, there twice, superfluous, or wrong; all are listed.
    """
    _require_layers(config, stored, where)
    shapes, family = parameter_shapes(config), architecture.family
    places: dict[str, tuple[StoredTensor, Layout]] = {}
    problems: list[str] = []
    used: set[str] = set()
    for name, shape in shapes.items():
        found = [form for form in dict.fromkeys(family.forms(name)) if form in stored]
        used.update(found)
        if len(found) == 1 and (place := family.place(name)):
            places[name] = stored[found[0]], place.layout
            problems += _faults(
                found[0], stored[found[0]], place.layout.stored_shape(shape), allow_nonfinite
            )
        elif found:
            problems.append(f"{name}: stored twice, as {' and '.join(map(quoted, found))}")
        else:
            problems.append(_missing(architecture, name, shape))
    heads = _heads(architecture, stored) if leave_out else set()
    left = [name for name in stored if name not in used]
    problems += [
        f"{quoted(name)}: superfluous, of shape {stored[name].shape}"
        for name in left
        if name not in heads
    ]
    if problems:
        raise InvalidTensors(where, problems)
    return Parameters(shapes, places), tuple(left)


def _require_layers(
    config: VisionTransformerConfig, stored: Mapping[str, StoredTensor], where: str
) -> None:
    """Refuse a configuration of more blocks than there can be, before its names are listed."""
    if config.num_layers > len(stored):
        numbers = {found.group(0) for name in stored if (found := _LAYER_NUMBER.search(name))}
        raise InvalidTensors(
            where,
            [f"the configuration has {config.num_layers} layers, the tensors are of"
             f" {len(numbers)}"],
        )  # fmt: skip


def _missing(architecture: Architecture, name: str, shape: tuple[int, ...]) -> str:
    place = architecture.family.place(name)
    if place is None:
        return f"{name}: a {architecture.family.model_type} model has no such parameter"
    advice = ""
    if group := next((group for group, names in GROUPS.items() if name in names), ""):
        advice = f"; load a configuration without the {group}, and add fresh parameters to that"
    return (
        f"{architecture.stored_name(name)!r}: missing, expected shape"
        f" {place.layout.stored_shape(shape)} ({name}){advice}"
    )


def _heads(architecture: Architecture, stored: Mapping[str, object]) -> set[str]:
    """The stored names of all that may stand on the bare model."""
    names = [name for group in GROUPS.values() for name in group]
    return {form for name in names for form in architecture.family.forms(name) if form in stored}


def _faults(
    name: str, tensor: StoredTensor, shape: tuple[int, ...], allow_nonfinite: bool
) -> list[str]:
    """What is wrong with one tensor; it is read only if its shape and type are right."""
    problems = []
    if tensor.shape != shape:
        problems.append(f"{name!r}: expected shape {shape}, found {tensor.shape}")
    if not tensor.is_float:
        expected = ", ".join(FLOATS)
        problems.append(f"{name!r}: expected one of {expected}, found {quoted(tensor.dtype)}")
    if problems or allow_nonfinite:
        return problems
    array = tensor.load()
    if count := array.size - int(np.count_nonzero(np.isfinite(array))):
        problems.append(
            f"{name!r}: {count} of {array.size} numbers are NaN or infinite; "
            "allow_nonfinite=True loads them nonetheless"
        )
    return problems
