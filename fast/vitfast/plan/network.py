"""What the devices send one another in a step.

    FSDP             a parameter is gathered for the forward and for the backward, in the type of
                     the computation; its gradient is summed over the batch and scattered, in its
                     own
    data             what is left of a weight's gradient after that is summed over `data`
    tensor parallel  activations are summed over `model`: after Wo and W2, and, of cotangents,
                     before Wq, Wk, Wv and before W1

`vitfast.sharding` says what is cut, and `tests/fast/test_plan.py` that XLA makes these of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vitfast.plan.job import Job, Parameter, parameters
from vitfast.plan.memory import layer_input

GATHER, SCATTER, REDUCE = "all-gather", "reduce-scatter", "all-reduce"


class Collective(NamedTuple):
    """One kind of operation between devices, as often as a step has it.

    Attributes:
        kind: all-gather, reduce-scatter or all-reduce.
        what: which array.
        purpose: "forward", "backward", "gradients" or "loss".
        axes: the mesh axes along which the devices lie that take part.
        devices: how many take part in each.
        times: how many there are in a step.
        numbers: of the array before it is scattered, or once it is gathered or summed.
        itemsize: bytes of a number.
    """

    kind: str
    what: str
    purpose: str
    axes: tuple[str, ...]
    devices: int
    times: int
    numbers: int
    itemsize: int

    @property
    def size(self) -> int:
        """The bytes of all of these arrays."""
        return self.times * self.numbers * self.itemsize

    @property
    def sent(self) -> float:
        """The bytes that each device sends, in rings: an all-reduce scatters, then gathers."""
        rounds = 2 if self.kind == REDUCE else 1
        return rounds * self.size * (self.devices - 1) / self.devices


def collectives(job: Job) -> list[Collective]:
    """Every collective of a step."""
    return [one for one in _all(job) if one.devices > 1 and one.times > 0 and one.numbers > 0]


def _all(job: Job) -> Iterator[Collective]:
    for parameter in parameters(job):
        if not parameter.name.startswith(("mask_token", "pooler", "decoder")):  # no part of logits
            yield from _gathers(job, parameter)
            yield from _gradient(job, parameter)
    yield from _activations(job)
    yield Collective(REDUCE, "loss", "loss", ("data", "fsdp"), job.batch_parts, 1, 1, 4)


def _gathers(job: Job, one: Parameter) -> Iterator[Collective]:
    if not one.by_fsdp:
        return
    computed, kept = job.bytes_each
    numbers = one.gathered(job)
    itemsize = kept if "norm" in one.name else computed  # statistics are not rounded
    for purpose, times in (("forward", 1), ("backward", _gathered_again(job, one))):
        arrays = times * one.arrays
        yield Collective(GATHER, one.name, purpose, ("fsdp",), job.fsdp, arrays, numbers, itemsize)


def _gathered_again(job: Job, one: Parameter) -> int:
    """How often the backward gathers it once more.

    It needs a layer's weights and the scales of its normalisations; computing the layer once more
    needs all but its last bias, since nothing needs the layer's output. What is outside of the
    layers stays.

    A second forward and the backward share one gathering of the same array. Rounded to the type of
    the computation, a weight is to XLA another array each time, and is gathered for each; so is
    the head's, whose two uses otherwise share one.
    """
    rounded = one.is_weight and job.dtype != job.param_dtype
    if not one.layers:
        return int(rounded and one.name == "head.weights")
    if not job.remat:
        return int(one.is_weight or one.name.endswith("gamma"))
    recomputed = job.config.layer_scale or one.name not in ("ffn.w2", "ffn.b2")
    if one.is_weight and (rounded or not recomputed):
        return 1 + recomputed
    return int(recomputed)


def _gradient(job: Job, one: Parameter) -> Iterator[Collective]:
    """Of a weight, in two steps: over fsdp, scattered, then over data what is left.

    Of anything else at once; it is scattered where only fsdp takes part.
    """
    _, kept = job.bytes_each
    name, arrays, numbers = one.name, one.arrays, one.gathered(job)
    if one.by_fsdp and (one.is_weight or job.data == 1):
        yield Collective(SCATTER, name, "gradients", ("fsdp",), job.fsdp, arrays, numbers, kept)
        rest = one.held(job)
        yield Collective(REDUCE, name, "gradients", ("data",), job.data, arrays, rest, kept)
    else:
        both, parts = ("data", "fsdp"), job.batch_parts
        yield Collective(REDUCE, name, "gradients", both, parts, arrays, numbers, kept)


def _activations(job: Job) -> Iterator[Collective]:
    computed, _ = job.bytes_each
    layers, numbers = job.config.num_layers, layer_input(job)
    for what, purpose, sums in (
        ("activations", "forward", 2),
        ("activations", "backward", _summed_again(job)),
        ("cotangents", "backward", 2),
    ):
        yield Collective(
            REDUCE, what, purpose, ("model",), job.model, sums * layers, numbers, computed
        )


def _summed_again(job: Job) -> int:
    """How many of a layer's two sums the backward makes anew: W2's only if a scale needs it."""
    return 0 if not job.remat else 1 + job.config.layer_scale
