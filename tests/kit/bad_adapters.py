"""Adapters with one fault each; the tests run them as files, as a user would."""

import os
import time

import numpy as np

from vitspec.testing.reference import SpecImplementation


class Good:
    name, version, spec, dtype = "good", "1", "vit", "float32"

    def __init__(self):
        self._spec = SpecImplementation("vit")

    def forward(self, config, params, images):
        return self._spec.forward(config, params, images)["logits"]

    def vjp(self, config, params, images, cotangent):
        d_params, d_images = self._spec.vjp(config, params, images, cotangent)
        return self.bend(dict(d_params)), d_images

    def bend(self, d_params):
        return d_params


class ForwardOnly:
    name, version, spec, dtype = "forward-only", "1", "vit", "float32"

    def forward(self, config, params, images):
        return SpecImplementation("vit").forward(config, params, images)["logits"]


class OnlyDivisibleHeads(Good):
    def supports(self, config):
        if config.head_count == 0 or config.embed_dim % config.head_count:
            return "the heads must divide embed_dim"
        return None


class SupportsNothing(Good):
    def supports(self, config):
        return "not today"


class Raises(Good):
    def forward(self, config, params, images):
        raise RuntimeError("out of\nregisters")


class RaisesLater(Good):
    """On what the first phase does not try: several layers."""

    def forward(self, config, params, images):
        if config.num_layers > 1:
            raise RuntimeError("only one layer")
        return super().forward(config, params, images)


class Exits(Good):
    def forward(self, config, params, images):
        raise SystemExit(0)


class NaN(Good):
    def bend(self, d_params):
        d_params["head.bias"] = d_params["head.bias"] * np.nan
        return d_params


class NaNLater(Good):
    """On what the first phase does not try: a batch of one."""

    def forward(self, config, params, images):
        logits = super().forward(config, params, images)
        return logits * np.float32(np.nan if len(images) == 1 else 1)


class WrongDtype(Good):
    def bend(self, d_params):
        return {name: d.astype(np.float64) for name, d in d_params.items()}


class MissingName(Good):
    def bend(self, d_params):
        del d_params["head.bias"]
        return d_params


class ExtraName(Good):
    def bend(self, d_params):
        return d_params | {"head.wieghts": d_params["head.weights"]}


class WrongShape(Good):
    def bend(self, d_params):
        return d_params | {"head.weights": d_params["head.weights"].T}


class WritesIntoInputs(Good):
    def forward(self, config, params, images):
        params["head.bias"][...] *= 2
        return super().forward(config, params, images)


class Dropout(Good):
    """Something else on every run, by far more than rounding."""

    def forward(self, config, params, images):
        keep = np.random.default_rng().random(images.shape) < 0.9
        return super().forward(config, params, images * keep.astype(images.dtype))


class LastBit(Good):
    """Something else on every other run, by rounding: as atomic additions on a GPU."""

    runs = 0

    def bend(self, d_params):
        self.runs += 1
        jitter = np.float32(1 + 2.0**-23 * (self.runs % 2))
        return d_params | {"head.weights": d_params["head.weights"] * jitter}


class Talks(Good):
    def forward(self, config, params, images):
        print("hello from the adapter")
        os.write(1, b"hello from native code\n")
        return super().forward(config, params, images)


class Hangs(Good):
    def forward(self, config, params, images):
        time.sleep(600)


class HangsLater(Good):
    def forward(self, config, params, images):
        if config.num_layers > 1:
            time.sleep(600)
        return super().forward(config, params, images)


class Crashes(Good):
    def forward(self, config, params, images):
        os._exit(42)


class CrashesLater(Good):
    def forward(self, config, params, images):
        if config.num_layers > 1:
            os._exit(42)
        return super().forward(config, params, images)


class NoVersion:
    name, spec, dtype = "no-version", "vit", "float32"

    def forward(self, config, params, images): ...


class Other(Good):
    """Of a function that vitspec does not know, with a gradient that is not its forward's."""

    spec = "other"

    def example(self, rng):
        return None, {"w": rng.standard_normal((5, 3))}, rng.standard_normal((4, 5))

    def forward(self, config, params, images):
        return images @ params["w"]

    def vjp(self, config, params, images, cotangent):
        return {"w": images.T @ cotangent / len(images)}, cotangent @ params["w"].T


class Bfloat17(Good):
    dtype = "bfloat17"
