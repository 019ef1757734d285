"""The peers that run on JAX: a textbook's model, and Flax's own modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from vitfast.bench.cases import Case, Flat
from vitfast.bench.layouts import to_our_gradients
from vitfast.bench.peers import flax_pre_norm
from vitfast.bench.peers import textbook as textbook_pre_norm
from vitfast.bench.peers.jax_model import JaxModel
from vitspec.testing.adapters.maps import NAME_MAPS
from vitspec.testing.adapters.peers.flax_modules import flax_vit
from vitspec.testing.adapters.peers.plain_jax import plain_jax_vit


def textbook(case: Case, device: str) -> JaxModel:
    """Bare jax.numpy; JAX differentiates it."""
    if case.family == "pre-norm":
        call: Any = partial(textbook_pre_norm.pre_norm, case.config)
    else:

        def call(params: Any, images: Any) -> Any:
            return plain_jax_vit(case.config, params, images, cls=False)["logits"]

    return JaxModel(case, call, case.parameters(), lambda flat: flat, channels_last=False)


def flax_modules(case: Case, device: str) -> JaxModel:
    """Flax NNX's own modules, with Flax's own defaults; JAX differentiates them."""
    if case.family == "pre-norm":
        module: Any = flax_pre_norm.PreNormViT(case, nnx.Rngs(0))
        to_theirs: Any = partial(flax_pre_norm.to_theirs, case)
    else:
        module = flax_vit(case.config, *case.image_shape, cls=False)
        to_theirs = (
            NAME_MAPS["flax-patches"].bind(case.config, *case.image_shape, cls=False).to_theirs
        )
        for _, inner in nnx.iter_graph(module):
            if isinstance(inner, nnx.LayerNorm):
                inner.use_fast_variance = True
    graph, state, rest = nnx.split(module, nnx.Param, ...)
    paths = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}

    def call(params: Any, images: Any) -> Any:
        filled = [(path, leaf.replace(params[name])) for name, (path, leaf) in paths.items()]
        return nnx.merge(graph, nnx.from_flat_state(filled), rest, copy=True)(images)

    def to_flat(d_params: Any) -> Flat:
        arrays = {name: np.asarray(array) for name, array in d_params.items()}
        return to_our_gradients(to_theirs, case.shapes(), arrays)

    return JaxModel(case, call, dict(to_theirs(case.parameters())), to_flat, channels_last=True)
