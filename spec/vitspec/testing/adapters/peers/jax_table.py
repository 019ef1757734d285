"""The peers that are made of JAX functions and modules: data only."""

from __future__ import annotations

from vitspec.testing.adapters.peers.peer import Peer

JAX_PEERS: tuple[Peer, ...] = ()
