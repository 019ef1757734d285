"""A checkpoint's name on the Hugging Face hub, as the folder of its files in the hub's cache.

`huggingface_hub` does the work: its cache (HF_HOME), its offline mode (HF_HUB_OFFLINE=1), its
access tokens. Only the configuration, the image processor's and the weights in one format are
fetched.
"""

from __future__ import annotations

import re
from pathlib import Path

from vitfast.checkpoints.errors import CheckpointError, first_line, quoted
from vitfast.checkpoints.weights import PYTORCH, SAFETENSORS

CONFIGURATIONS = ("config.json", "preprocessor_config.json")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})?")


def is_hub_name(name: object) -> bool:
    """Whether this may be the name of a model on the hub: "owner/model", or "model"."""
    return isinstance(name, str) and len(name) < 200 and _NAME.fullmatch(name) is not None


def fetch(name: str, use_pytorch: bool, revision: str | None) -> Path:
    """The folder of this model's files, downloaded unless they are in the cache.

    Raises:
        CheckpointError: the library is not installed, or it cannot get the files.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            quoted(name),
            ["there is no such folder, and names need huggingface_hub:"
             " python -m pip install 'vitspec[fast]'"],
        ) from error  # fmt: skip
    weights = PYTORCH if use_pytorch else SAFETENSORS
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=[*CONFIGURATIONS, *weights.patterns]
        )
    except Exception as error:  # its errors have no common class
        raise CheckpointError(
            quoted(name),
            [f"there is no such folder, and the Hugging Face hub did not give it; "
             f"{first_line(error)}"],
        ) from error  # fmt: skip
    return Path(folder)
