"""The weights of a checkpoint's folder: one file, or several with an index.

| | one file | several |
| --- | --- | --- |
| safetensors | `model.safetensors` | `model-00001-of-00002.safetensors` ..., and an index |
| PyTorch | `pytorch_model.bin` | `pytorch_model-00001-of-00002.bin` ..., and an index |

The index, `model.safetensors.index.json` or `pytorch_model.bin.index.json`, is {"weight_map":
{tensor: file}}: each tensor is in the file that it names and in no other, and each file is in the
folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitfast.checkpoints.errors import CheckpointError, quoted
from vitfast.checkpoints.folder import Folder, RegularFile
from vitfast.checkpoints.pytorch_file import read_pytorch
from vitfast.checkpoints.safetensors_file import read_safetensors
from vitfast.checkpoints.stored import StoredTensor
from vitfast.checkpoints.strict_json import read_object


@dataclass(frozen=True)
class Format:
    """How weights are stored: the names of the files, and who reads one."""

    whole: str
    shards: str
    read: Callable[[RegularFile], dict[str, StoredTensor]]

    @property
    def index(self) -> str:
        """The name of the index."""
        return f"{self.whole}.index.json"

    @property
    def patterns(self) -> list[str]:
        """The names of all files of this format, for a download."""
        return [self.whole, self.index, self.shards]


SAFETENSORS = Format("model.safetensors", "model-*-of-*.safetensors", read_safetensors)
PYTORCH = Format("pytorch_model.bin", "pytorch_model-*-of-*.bin", read_pytorch)


def read_weights(folder: Folder, use_pytorch: bool) -> dict[str, StoredTensor]:
    """The tensors in a folder by name, not read yet.

    Raises:
        CheckpointError: there are none of this format, or the files are damaged.
    """
    kind, other = (PYTORCH, SAFETENSORS) if use_pytorch else (SAFETENSORS, PYTORCH)
    if folder.has(kind.whole):
        return kind.read(folder.file(kind.whole))
    if folder.has(kind.index):
        return _read_shards(folder, kind)
    advice = ""
    if folder.has(other.whole) or folder.has(other.index):
        advice = f"; there is {other.whole}: pass use_pytorch={not use_pytorch}"
    raise CheckpointError(
        str(folder.path), [f"expected {kind.whole} or {kind.index}, found neither{advice}"]
    )


def _read_shards(folder: Folder, kind: Format) -> dict[str, StoredTensor]:
    index = folder.file(kind.index)
    where = _weight_map(index)
    files = list(dict.fromkeys(where.values()))
    found = {name: kind.read(folder.file(name)) for name in files}
    problems = [
        f"tensor {quoted(tensor)} is in {quoted(name)}, and the index "
        + (f"says {quoted(where[tensor])}" if tensor in where else "does not have it")
        for name in files
        for tensor in found[name]
        if where.get(tensor) != name
    ]
    problems += [
        f"tensor {quoted(tensor)} is not in {quoted(name)}, where the index says it is"
        for tensor, name in where.items()
        if tensor not in found[name]
    ]
    if problems:
        raise CheckpointError(index.shown, problems)
    return {tensor: found[name][tensor] for tensor, name in where.items()}


def _weight_map(index: RegularFile) -> dict[str, str]:
    where = read_object(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise CheckpointError(index.shown, ["weight_map: expected an object of file names"])
    return where
