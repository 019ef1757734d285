"""Finding implementations by what the command line calls them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vitspec.testing.adapter_errors import AdapterError, raised
from vitspec.testing.adapters.peers.registry import PEERS, MissingPeerError, load_peer
from vitspec.testing.catalogue import deviation
from vitspec.testing.description import describe
from vitspec.testing.families import FAMILIES
from vitspec.testing.reference import SpecImplementation

GROUP = "vitspec.implementations"
"""The entry-point group in which packages announce implementations."""
PLANTED = "planted:"


def names() -> list[str]:
    """The names of the installed implementations."""
    return sorted(point.name for point in entry_points(group=GROUP))


def find(target: str) -> Any:
    """The implementation that `target` names, with what it must have.

    Args:
        target: an installed name; a peer (`vitspec peers` lists them); "module:attribute"; a file,
            "path/to/adapter.py" or "path/to/adapter.py:attribute"; or "planted:NAME[,NAME...]",
            the specification with mistakes of the catalogue. An attribute that is a class or a
            function without parameters is called. A file needs no attribute if it holds one
            implementation.

    Raises:
        AdapterError: there is none, it does not load, or it lacks something.
    """
    if target.startswith(PLANTED):
        return planted_implementation(target.removeprefix(PLANTED))
    points = entry_points(group=GROUP, name=target)
    try:
        if points:
            found = next(iter(points)).load()
        elif ".py" in target:
            found = _from_file(target)
        elif ":" in target:
            module_name, _, attribute = target.partition(":")
            if "" not in sys.path:
                sys.path.insert(0, "")  # as `python -m` does: the user's own module is here
            found = _attribute(importlib.import_module(module_name), attribute, target)
        else:
            found = _peer(target)
        if isinstance(found, type) or (callable(found) and not hasattr(found, "forward")):
            found = found()
    except AdapterError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise AdapterError(
            f"the implementation {target!r} does not load: {raised(error)}; "
            "is all that it needs installed? For vitfast: python -m pip install 'vitspec[fast]'"
        ) from error
    try:
        describe(found)
    except AdapterError as error:
        raise AdapterError(f"the implementation {target!r}: {error}", error.raised) from error
    return found


def planted_implementation(mistakes: str) -> Any:
    """The specification with mistakes of the catalogue, for a first look at the kit.

    A mistake in the forward has the derivatives that automatic differentiation would give it.
    """
    try:
        named = [deviation(name.strip()) for name in mistakes.split(",")]
    except KeyError as error:
        raise AdapterError(str(error.args[0])) from error
    for family in FAMILIES.values():
        shown = {one.name: one for one in family.mistakes(other_sizes=True)}
        if all(one.name in shown and family.name in one.specs for one in named):
            forms = [shown[one.name].differentiated() or shown[one.name] for one in named]
            name = f"{PLANTED}{','.join(one.name for one in named)}"
            return SpecImplementation(family.name, mistakes=forms, name=name)
    raise AdapterError(
        f"no model shows {mistakes}: the check has no mask and no decoder, and a model has one"
        " pooling"
    )


def _peer(target: str) -> Any:
    if target not in PEERS:
        raise AdapterError(
            f"no implementation is named {target!r}; installed: {', '.join(names()) or 'none'};"
            " `vitspec peers` lists other libraries'; or give module:attribute, or a file"
        )
    try:
        return load_peer(target)
    except MissingPeerError as error:
        raise AdapterError(str(error)) from error


def _from_file(target: str) -> Any:
    stem, dot_py, attribute = target.partition(".py")
    path = Path(stem + dot_py)
    if not path.is_file():
        raise AdapterError(f"there is no file {path}; give path/to/adapter.py:attribute")
    spec = importlib.util.spec_from_file_location(f"vitspec_adapter_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise AdapterError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))  # as running the file would
    spec.loader.exec_module(module)
    if attribute.startswith(":") and len(attribute) > 1:
        return _attribute(module, attribute[1:], target)
    found = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (not isinstance(value, type) or value.__module__ == module.__name__)
        and hasattr(value, "forward")
        and hasattr(value, "spec")
    }
    objects = {n: v for n, v in found.items() if not isinstance(v, type)} or found
    if len(objects) != 1:
        raise AdapterError(
            f"{path} holds {len(objects)} implementations ({', '.join(objects) or 'none'}); "
            f"name one: {path}:ATTRIBUTE"
        )
    return next(iter(objects.values()))


def _attribute(module: Any, attribute: str, target: str) -> Any:
    for name in attribute.split("."):
        if not hasattr(module, name):
            raise AdapterError(f"{target!r}: there is no attribute {attribute!r}")
        module = getattr(module, name)
    return module
