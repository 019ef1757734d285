"""Tokamax's Triton kernels without a GPU.

Two ways to look at them from a CPU: Pallas interprets the kernels, so that their numbers can be
graded; and XLA lowers a program for CUDA without compiling it, so that one sees whether the kernel
is in it, and on what shapes. Neither says how fast they are, nor how the GPU's own products round.

The Mosaic and cuDNN implementations can be looked at in neither way: Mosaic's kernels have no
interpreter here and are not lowered without a GPU, cuDNN is a library. On a GPU,
`vitfast backends --check` grades them all.
"""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from support.attention import BATCH, HEAD_DIM, HEADS, assert_attention_conforms, draw
from vitfast import ViT, make_tokamax_attention
from vitfast.sharding import ViTTensorParallelSharding
from vitspec import ViTConfig

tokamax = pytest.importorskip("tokamax")
REASON = "this Tokamax keeps its Triton kernels elsewhere"
api = pytest.importorskip("tokamax._src.ops.attention.api", reason=REASON)
forward = pytest.importorskip("tokamax._src.ops.attention.pallas_triton", reason=REASON)
backward = pytest.importorskip("tokamax._src.ops.attention.pallas_triton_vjp", reason=REASON)

BLOCK, TOKENS = 16, 32
"""Whole blocks: what a kernel reads beyond the last row is not as it would be on a GPU."""

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", params=[True, False], ids=["masked", "unmasked"])
def masked(request):
    return request.param


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def precision(request):
    """Not float16: JAX has no such product on a CPU (F16_F16_F32), which the interpreter needs."""
    return request.param


@pytest.fixture(scope="module")
def interpreted(precision, masked):
    """(query, key, value, cotangent, mask) -> (out, d_query, d_key, d_value), compiled.

    vitfast's attention by the Triton kernels, interpreted.
    """
    config = forward.PallasTritonFlashAttention.config_cls(
        block_q=BLOCK, block_k=BLOCK, num_stages=1, num_warps=4
    )
    blocks = {f"block_{axis}": BLOCK for axis in ("m1", "n1", "m2", "n2")}
    vjp_config = backward.PallasTritonFlashAttentionVjp.config_cls(
        **blocks, num_stages=1, num_warps=4
    )
    kernel = forward.PallasTritonFlashAttention(
        config=config, vjp=backward.PallasTritonFlashAttentionVjp(config=vjp_config)
    )
    pallas_call = pl.pallas_call

    def interpreted_call(*args, compiler_params=None, **kwargs):
        return pallas_call(*args, **kwargs | {"interpret": True})

    def run(query, key, value, cotangent, mask):
        attention = make_tokamax_attention("triton")
        out, pullback = jax.vjp(lambda *qkv: attention(*qkv, mask), query, key, value)
        return out, *pullback(cotangent)

    x = jax.ShapeDtypeStruct((BATCH, TOKENS, HEADS, HEAD_DIM), precision)
    mask = jax.ShapeDtypeStruct((BATCH, HEADS, TOKENS, TOKENS), bool) if masked else None
    with (
        tokamax.config.cross_compile("true"),  # as if there were a GPU
        mock.patch.object(api, "IMPLEMENTATIONS", {**api.IMPLEMENTATIONS, "triton": kernel}),
        mock.patch.object(pl, "pallas_call", interpreted_call),
        # The interpreter does not know the program's index inside a condition. This one asks
        # whether a block begins beyond the end, and none does.
        mock.patch.object(pl, "when", return_value=lambda body: body()),
    ):
        return jax.jit(run).lower(x, x, x, x, mask).compile()


@given(seed=seeds, allowed=st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=5)
def test_the_interpreted_kernels_compute_the_specification_s_attention(
    interpreted, precision, masked, seed, allowed
):
    arrays = draw(seed, precision, TOKENS, TOKENS)
    mask = None
    if masked:
        mask = np.random.default_rng(seed).random((BATCH, HEADS, TOKENS, TOKENS)) < allowed
        mask[1, 2, 3] = False  # a query that may attend to nothing
    found = interpreted(*(jnp.asarray(array, precision) for array in arrays), mask)
    assert_attention_conforms(found, arrays, mask, precision)
    if masked:
        out, d_query, *_ = found
        assert not out[1, 3, 2].any()
        assert not d_query[1, 3, 2].any()


# ---- programs for a GPU --------------------------------------------------------------------------

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="cuda")
AXES = {"axis_names": ("data", "fsdp", "model"), "axis_types": (AxisType.Explicit,) * 3}
MESH = AbstractMesh((2, 2, 2), **AXES, abstract_device=H200)
ONE_DEVICE = AbstractMesh((1, 1, 1), **AXES, abstract_device=H200)


def kernels(run, *arguments):
    """The Triton kernels in a program for CUDA: their names, and the shapes of their arguments."""
    with tokamax.config.cross_compile("true"):
        program = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    found = []
    for line in program.splitlines():
        if "custom_call @__gpu$xla.gpu.triton" in line:
            (name,) = set(re.findall(r"pallas_flash_attention_(fwd|vjp)", line))
            found.append((name, re.findall(r"tensor<([\dx]+x(?:bf16|f16|f32|i1|i8))>", line)))
    return found


def output_and_vjp(query, mask):
    attention = make_tokamax_attention(["mosaic_tpu", "triton", "xla"])
    out, pullback = jax.vjp(lambda q: attention(q, q, q, mask), query)
    return out, pullback(out)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_gpu_gets_the_kernels_forward_and_backward(dtype):
    """Not XLA's attention, which comes next: its NotImplementedErrors would pass unseen."""
    query = jax.ShapeDtypeStruct((8, 197, 12, 64), dtype, sharding=NamedSharding(ONE_DEVICE, P()))
    mask = jax.ShapeDtypeStruct((8, 1, 197, 197), jnp.bool_)
    short = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[dtype]
    for given_mask in (None, mask):
        with jax.sharding.use_abstract_mesh(ONE_DEVICE):
            found = kernels(output_and_vjp, query, given_mask)
        assert [name for name, _ in found] == ["fwd", "vjp"]
        assert f"8x197x12x64x{short}" in found[0][1]


@pytest.mark.parametrize(
    ("spec", "local"),
    [
        (P(("data", "fsdp")), "4x197x12x64xbf16"),
        (P("data", None, "model"), "8x197x6x64xbf16"),
        (P(("data", "fsdp"), None, "model"), "4x197x6x64xbf16"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_mesh_each_device_s_kernels_get_its_own_images_and_heads(spec, local, masked):
    """Left to itself, Triton refuses an explicit mesh, and XLA's attention would run instead."""
    query = jax.ShapeDtypeStruct(
        (16, 197, 12, 64), jnp.bfloat16, sharding=NamedSharding(MESH, spec)
    )
    mask = jax.ShapeDtypeStruct((16, 1, 197, 197), jnp.bool_) if masked else None
    with jax.sharding.use_abstract_mesh(MESH):
        found = kernels(output_and_vjp, query, mask)
    assert [name for name, _ in found] == ["fwd", "vjp"]
    for _, shapes in found:
        arrays = [shape for shape in shapes if shape.endswith("x64xbf16")]
        assert set(arrays) == {local}


def test_a_training_step_s_program_has_them_in_every_layer_once():
    """Scanned layers are one program: one kernel forward, one backward, whatever the depth."""
    config = ViTConfig(
        patch_h=4, patch_w=4, stride=4, padding=0,
        embed_dim=128, hidden_dim=96, head_count=2, num_layers=3, num_classes=5,
    )  # fmt: skip
    with jax.sharding.use_abstract_mesh(MESH):
        model = jax.eval_shape(  # the shapes, with their shardings
            lambda: ViT(
                config, in_channels=3, height=16, width=16,
                attention_fn=make_tokamax_attention("triton"), dtype=jnp.bfloat16,
                sharding=ViTTensorParallelSharding(), rngs=nnx.Rngs(0),
            )
        )  # fmt: skip
        images = jax.ShapeDtypeStruct(
            (8, 16, 16, 3), jnp.float32, sharding=NamedSharding(MESH, model.sharding.images)
        )
        step = jax.grad(lambda model, images: model(images).astype(jnp.float32).sum())
        found = kernels(step, model, images)
    assert [name for name, _ in found] == ["fwd", "vjp"]
    for _, shapes in found:
        assert "2x16x1x64xbf16" in shapes
