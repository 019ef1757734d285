"""torchvision's wheel is built for CUDA; next to a PyTorch for the CPU it imports only with help.

transformers imports torchvision as soon as it is installed.
"""

from importlib.util import find_spec

from vitspec.testing.adapters.peers.torchvision_operators import declare_missing_operators

if find_spec("torch") is not None:
    declare_missing_operators()
