"""`pytorch_model.bin`: a pickle, read by PyTorch with `weights_only=True`.

A pickle is a program. PyTorch's restricted reader runs none of it: it builds tensors and plain
containers, and refuses the rest. PyTorch is needed for nothing else here, so it is not required.
"""

from __future__ import annotations

import zipfile
from functools import partial
from typing import Any

from vitfast.checkpoints.errors import CheckpointError, first_line, quoted
from vitfast.checkpoints.folder import RegularFile
from vitfast.checkpoints.stored import FLOATS, StoredTensor
from vitspec.typing import Array


def read_pytorch(file: RegularFile) -> dict[str, StoredTensor]:
    """The tensors of a file by name; where the file allows it, mapped into memory and not read yet.

    Raises:
        CheckpointError: PyTorch is not installed, it refuses the file, or the file holds something
            else than dense tensors by name.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            file.shown,
            ["reading it needs PyTorch: python -m pip install 'vitspec[interop]'; or convert it"
             " to model.safetensors"],
        ) from error  # fmt: skip
    with file.open():
        pass  # it is still the file that was found
    try:
        # Files from before PyTorch 1.6 are no archives, and cannot be mapped.
        mapped = zipfile.is_zipfile(file.path)
        state = torch.load(file.path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever a hostile file makes of the reader
        raise CheckpointError(
            file.shown, [f"PyTorch cannot read it as plain weights; {first_line(error)}"]
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            file.shown, [f"expected tensors by name, found a {type(state).__name__}"]
        )
    wrong = [_problem(torch, name, value) for name, value in state.items()]
    if problems := [problem for problem in wrong if problem]:
        raise CheckpointError(file.shown, problems)
    return {name: _stored(torch, value, file.shown) for name, value in state.items()}


def _problem(torch: Any, name: object, value: object) -> str | None:
    if not isinstance(name, str):
        return f"expected names of tensors, found {quoted(name)}"
    if not isinstance(value, torch.Tensor):
        return f"{quoted(name)}: expected a tensor, found a {type(value).__name__}"
    dense = value.layout == torch.strided and value.device.type == "cpu"
    if not dense or value.is_quantized:
        return f"{quoted(name)}: expected a dense tensor, found {quoted(str(value.layout))}"
    return None


def _stored(torch: Any, tensor: Any, where: str) -> StoredTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(where, tuple(tensor.shape), dtype, partial(_array, torch, tensor))


def _array(torch: Any, tensor: Any) -> Array:
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:  # NumPy has no such type of its own
        return plain.view(torch.int16).numpy().view(FLOATS["bfloat16"])
    return plain.numpy()
