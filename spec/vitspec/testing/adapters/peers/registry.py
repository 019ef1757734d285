"""Every peer by its short name, for `vitspec check NAME` and `vitspec peers`.

No peer belongs to a plain `vitspec check`, which runs what is installed as an implementation.
Importing this imports no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vitspec.testing.adapters.peers.jax_table import JAX_PEERS
from vitspec.testing.adapters.peers.peer import Peer
from vitspec.testing.adapters.peers.torch_table import TORCH_PEERS

PEERS: dict[str, Peer] = {peer.name: peer for peer in (*TORCH_PEERS, *JAX_PEERS)}
"""The peers of the practical family."""


class MissingPeerError(ImportError):
    """What a peer needs is not installed, or does not import; the message is one line."""


def load_peer(name: str) -> Any:
    """The implementation of a peer.

    Raises:
        MissingPeerError: something that it needs is not installed, or does not import.
    """
    peer = PEERS[name]
    if missing := peer.missing:
        raise MissingPeerError(
            f"the peer {name!r} needs {', '.join(missing)}, not installed here: "
            f"python -m pip install {' '.join(missing)}"
        )
    module, _, attribute = peer.target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
        return found() if isinstance(found, type) or not hasattr(found, "forward") else found
    except ImportError as error:
        text = " ".join(str(error).split())
        raise MissingPeerError(f"the peer {name!r} does not import: {text}") from error
