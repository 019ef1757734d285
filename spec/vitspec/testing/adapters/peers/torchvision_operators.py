"""Importing torchvision's Python next to a PyTorch that its compiled half was not built for.

torchvision's usual wheel is built for CUDA. Next to a PyTorch for the CPU its compiled library does
not load, and `import torchvision` stops at the names of two operators, `nms` and `qnms`, that this
library would have declared. No ViT calls them, so declaring the names is enough; timm and others
import torchvision too.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitspec.testing.adapters.frameworks import framework

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
"""Of both operators."""


@cache
def declare_missing_operators() -> Any:
    """Let `import torchvision` succeed from here on, if its compiled library does not load.

    Returns:
        The library of declared names, which live as long as it does; None if none was needed.
    """
    torch, found = framework("torch"), find_spec("torchvision")
    if "torchvision" in sys.modules or found is None or _loads(torch, found):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + SIGNATURE)
    return library


def _loads(torch: Any, found: Any) -> bool:
    """Whether the compiled library loads, as torchvision itself will try."""
    folder = Path((found.submodule_search_locations or ["."])[0])
    files = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")]
    try:
        for file in files:
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")
