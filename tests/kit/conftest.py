"""An implementation to grade: the specification itself, perhaps with a mistake."""

from contextlib import nullcontext

import numpy as np
import pytest

from vitspec.testing.cases import MODELS
from vitspec.testing.catalogue import deviation, planted


class SpecAsImplementation:
    """`ViTSpec` behind the adapter, in float32; `mistake` names a deviation of the catalogue."""

    version, dtype = "1", "float32"

    def __init__(self, spec="vit", mistake=None):
        self.name, self.spec, self.mistake = f"spec-{spec}", spec, mistake

    def _run(self, config, params, images, cotangent):
        C, H, W = images.shape[1:]
        context = planted(deviation(self.mistake)) if self.mistake else nullcontext()
        with context:
            model = MODELS[self.spec].from_flat(config, params, in_channels=C, height=H, width=W)
            results = [model.backward(x, g) for x, g in zip(images, cotangent, strict=True)]
            logits = np.stack([model.forward(x) for x in images])
        grads = [g.to_flat() for g, _ in results]
        summed = {name: sum(g[name] for g in grads) for name in params}
        return logits, summed, np.stack([d for _, d in results])

    def forward(self, config, params, images):
        zeros = np.zeros((len(images), config.num_classes), images.dtype)
        return self._run(config, params, images, zeros)[0]

    def vjp(self, config, params, images, cotangent):
        return self._run(config, params, images, cotangent)[1:]


@pytest.fixture(params=["vit", "vit-cls"])
def spec_name(request):
    return request.param


@pytest.fixture
def implementation():
    return SpecAsImplementation
