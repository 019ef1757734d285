"""The peers that are made of PyTorch modules: data only."""

from __future__ import annotations

from vitspec.testing.adapters.peers.peer import Peer

TORCH_PEERS: tuple[Peer, ...] = ()
