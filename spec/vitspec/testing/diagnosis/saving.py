"""A departing point in files, so that one can debug without the kit: `vitspec diagnose --save`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitspec.testing.diagnosis.diagnosis import Diagnosis
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.report.files import write_atomically, write_json
from vitspec.typing import Array

ARRAYS, SCRIPT, DIAGNOSIS = "point.safetensors", "run.py", "diagnosis.json"
PROGRAM = """\
# {place}
# {verdict}
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from {module} import {type}
{implementation}
# param.* (the parameters), images, cotangent, truth.*, found.*
arrays = load_file(Path(__file__).with_name("{arrays}"))
params = {{name[6:]: value for name, value in arrays.items() if name.startswith("param.")}}
config = {config!r}
found = mine.forward(config, params, arrays["images"])
logits = np.asarray(found["logits"] if isinstance(found, dict) else found)
print("logits:", logits, "truth:", arrays["truth.logits"], sep="\\n")
if hasattr(mine, "vjp"):
    gradients, d_images = mine.vjp(config, params, arrays["images"], arrays["cotangent"])
    for name, value in gradients.items():
        print(name, np.abs(np.asarray(value) - arrays["truth." + name]).max())
"""


def save(folder: Path, sample: Sample, diagnosis: Diagnosis, target: str = "") -> None:
    """Write a point: parameters, images, cotangent, the truth, what was found; and a script.

    Args:
        folder: made if it is not there; files of these names in it are replaced.
        sample: what is saved.
        diagnosis: what was found out there.
        target: what the command line calls the implementation; "" for an object.
    """
    from safetensors.numpy import save as as_bytes

    point, names = sample.point, (*sample.taps, *sample.tensors)
    arrays: dict[str, Array] = {f"param.{name}": value for name, value in point.params.items()}
    arrays |= {"images": point.images, "cotangent": point.cotangent}
    arrays |= {f"truth.{name}": sample.truth[name] for name in names}
    arrays |= {f"found.{name}": sample.found[name] for name in names}
    contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    config_type = type(point.config)
    text = PROGRAM.format(
        place=sample.trial.description, verdict=diagnosis.verdict.replace("\n", " "), arrays=ARRAYS,
        config=point.config, module=config_type.__module__, type=_types(config_type.__name__),
        implementation=_import(target),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ARRAYS, as_bytes(contiguous, {"spec": point.spec}))
    write_atomically(folder / SCRIPT, text)
    write_json(folder / DIAGNOSIS, diagnosis.to_json())


def _types(name: str) -> str:
    """What the configuration's text is made of."""
    return f"DropoutRates, {name}" if name == "VisionTransformerConfig" else name


def _import(target: str) -> str:
    """The lines that make the implementation."""
    module, _, attribute = target.rpartition(":")
    if module.endswith(".py"):
        path = str(Path(module).resolve())
        return f"import runpy\n\nmine = runpy.run_path({path!r})[{attribute!r}]"
    if module and module != "planted":
        return f"from {module} import {attribute} as mine\n"
    if target:
        return f"from vitspec.testing.finding import find\n\nmine = find({target!r})"
    return "\nmine = ...  # your implementation"
