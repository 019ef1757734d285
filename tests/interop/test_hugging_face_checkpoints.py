"""Hugging Face's transformers as an oracle: its files, its functions, and every gradient.

Models with random weights are saved by transformers, loaded by us, and computed by the
specification in NumPy; what we save is loaded by transformers. Nothing is downloaded. Written
against transformers 5.23.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from support.checkpoints import (
    CONFIGS,
    DTYPES,
    assert_same_bits,
    parameters,
    split_safetensors,
)
from support.compare import assert_close, assert_flat_close, relative_error
from vitfast.checkpoints import ARCHITECTURES, CheckpointError, load_checkpoint, save_checkpoint
from vitfast.checkpoints.config import ACTIVATIONS
from vitspec.layers.losses import masked_error, masked_error_backward
from vitspec.models.vision_transformer import Conditions, VisionTransformer
from vitspec.vision_transformer_config import DropoutRates

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

TOLERANCE = 1e-12
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "num_channels": 2,
    "image_size": [13, 10], "patch_size": [4, 3],
}  # fmt: skip
SQUARE = {"image_size": 13, "patch_size": 4}
"""DINOv2 takes its positions for a square's even at its own size, and so does the MIM."""
KINDS = {
    "ViTModel": {"intermediate_size": 20, "pooler_output_size": 7},
    "ViTForImageClassification": {"intermediate_size": 20, "num_labels": 5},
    "ViTForMaskedImageModeling": {"intermediate_size": 20, "encoder_stride": 4} | SQUARE,
    "Dinov2Model": {"mlp_ratio": 2} | SQUARE,
    "Dinov2ForImageClassification": {"mlp_ratio": 2, "num_labels": 5} | SQUARE,
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def weights_in_float64(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention as transformers' "eager", whose softmax, however, computes in float32."""
    scores = query @ key.transpose(-1, -2) * scaling
    weights = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


transformers.AttentionInterface.register("float64_eager", weights_in_float64)


# ---- models --------------------------------------------------------------------------------------


def random_model(kind, build=None, attention="sdpa", dtype="float64", seed=0, **fields):
    """A model of this class in which nothing is zero and nothing alike."""
    cls, rng = getattr(transformers, kind), np.random.default_rng(seed)
    config = cls.config_class(**SIZES | KINDS[kind] | fields)
    config._attn_implementation = attention
    model = cls(config, **build or {}).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.standard_normal(tuple(parameter.shape))
            if name.endswith(("_token", "position_embeddings")):
                values *= 0.5
            elif values.ndim == 1:
                about_1 = "lambda1" in name or ("norm" in name and name.endswith("weight"))
                values = 0.1 * values + about_1
            else:
                values /= np.sqrt(values[0].size)
            parameter.copy_(torch.from_numpy(values))
    return model.to(getattr(torch, dtype))


def pixels(model, batch=2, seed=1, size=None):
    """Random images."""
    c = model.config
    height, width = size or (
        c.image_size if isinstance(c.image_size, list) else (c.image_size, c.image_size)
    )
    return np.random.default_rng(seed).standard_normal((batch, c.num_channels, height, width))


def ours(model, folder):
    """The specification's model of what transformers saved."""
    model.save_pretrained(folder)
    found = load_checkpoint(folder)
    assert found.architecture == type(model).__name__
    return VisionTransformer.from_flat(found.config, {**found.flat})


def as_numpy(tensor):
    return tensor.detach().numpy()


def theirs_by_our_names(model, leaf_of):
    """What `leaf_of` says of each parameter of transformers, by our flat names and layouts."""
    family = ARCHITECTURES[type(model).__name__].family
    found = {name: as_numpy(leaf_of(p)) for name, p in model.named_parameters()}
    flat = {}
    for name in our_names(model):
        (form,) = (form for form in family.forms(name) if form in found)
        flat[name] = family.place(name).layout.to_ours(found.pop(form))
    assert found == {}
    return flat


def our_names(model):
    """Our names of the parameters that there are."""
    family = ARCHITECTURES[type(model).__name__].family
    names = {name for name, _ in model.named_parameters()}
    layer = [f"encoder.layers.{i}.{n}" for i in range(model.config.num_hidden_layers)
             for n in family.layer]  # fmt: skip
    heads = [f"{h}.{leaf}" for h in ("head", "pooler", "decoder") for leaf in ("weights", "bias")]
    every = [*family.body, *layer, *heads]
    return [name for name in every if any(form in names for form in family.forms(name))]


# ---- outputs and gradients -----------------------------------------------------------------------

OUTPUTS = {
    "ViTModel": ("last_hidden_state", "pooler_output"),
    "ViTForImageClassification": ("logits",),
    "ViTForMaskedImageModeling": ("reconstruction",),
    "Dinov2Model": ("last_hidden_state",),
    "Dinov2ForImageClassification": ("logits",),
}


def assert_same_function(model, folder, images, masks=None, interpolate=None, tolerance=TOLERANCE):
    """Require the same outputs, hidden states and gradients of every parameter and pixel."""
    spec, names = ours(model, folder), OUTPUTS[type(model).__name__]
    rng = np.random.default_rng(7)
    x = torch.tensor(images, requires_grad=True)
    options = {} if interpolate is None else {"interpolate_pos_encoding": interpolate}
    if masks is not None:
        options["bool_masked_pos"] = torch.tensor(masks)
    found = model(pixel_values=x, output_hidden_states=True, **options)
    cotangents = {}
    for name in names:
        if found.get(name) is not None:
            cotangents[name] = rng.standard_normal(tuple(found[name].shape))
    total = sum((found[name] * torch.tensor(v)).sum() for name, v in cotangents.items())
    total.backward()
    d_theirs = theirs_by_our_names(model, gradient)
    d_ours = dict.fromkeys(d_theirs, 0.0)
    for b, image in enumerate(images):
        conditions = Conditions(
            masked_patches=None if masks is None else masks[b],
            interpolate_positions=interpolate is not None or type(model).__name__[0] == "D",
        )
        trace = spec.trace(image, conditions)
        for name in names:
            if name in cotangents:
                value = getattr(trace.outputs, name)
                assert_close(value, as_numpy(found[name])[b], tolerance, name)
        assert len(found.hidden_states) == len(trace.hidden_states)
        for i, state in enumerate(trace.hidden_states):
            assert_close(state, as_numpy(found.hidden_states[i])[b], tolerance, f"state {i}")
        d_outputs = {f"d_{name}": value[b] for name, value in cotangents.items()}
        grads, d_image = spec.backward(image, conditions=conditions, trace=trace, **d_outputs)
        assert_close(d_image, as_numpy(x.grad)[b], tolerance, "pixels")
        d_ours = {name: d_ours[name] + leaf for name, leaf in grads.to_flat().items()}
    assert_same_gradients(d_ours, d_theirs, tolerance)


def gradient(parameter):
    """The gradient, which PyTorch leaves out where nothing was sent back."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def assert_same_gradients(d_ours, d_theirs, tolerance):
    """As `assert_flat_close`; a key's bias has no gradient, what is found is rounding."""
    assert d_ours.keys() == d_theirs.keys()
    for name in [name for name in d_ours if name.endswith("mha.bk")]:
        scale = np.abs(d_theirs[name.replace("bk", "bq")]).max()
        for one in (d_ours, d_theirs):
            assert np.abs(one.pop(name)).max() <= tolerance * scale
    assert_flat_close(d_ours, d_theirs, tolerance)


@EVERY
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_outputs_and_every_gradient(kind, qkv_bias, tmp_path):
    model = random_model(kind, qkv_bias=qkv_bias)
    assert_same_function(model, tmp_path, pixels(model))


@pytest.mark.parametrize("activation", sorted({*ACTIVATIONS} - {"gelu"}))
def test_activations(activation, tmp_path):
    model = random_model("ViTForImageClassification", hidden_act=activation)
    tolerance = 1e-10 if activation == "gelu_fast" else TOLERANCE  # sqrt(2 / pi) to ten digits
    assert_same_function(model, tmp_path, pixels(model), tolerance=tolerance)


@pytest.mark.parametrize(
    ("kind", "fields", "build"),
    [
        ("ViTModel", {}, {"add_pooling_layer": False}),
        ("ViTModel", {"layer_norm_eps": 0.3}, {"use_mask_token": True}),
        ("ViTForImageClassification", {"num_labels": 0}, {}),
        ("ViTForImageClassification", {"num_hidden_layers": 1, "num_channels": 1}, {}),
        ("Dinov2Model", {"use_mask_token": False, "mlp_ratio": 1}, {}),
        ("Dinov2Model", {"num_attention_heads": 1, "layer_norm_eps": 0.3}, {}),
    ],
)
def test_variants(kind, fields, build, tmp_path):
    model = random_model(kind, build, **fields)
    if fields.get("num_labels") == 0:  # the "logits" are then the CLS row
        spec, images = ours(model, tmp_path), pixels(model)
        found = as_numpy(model(torch.tensor(images)).logits)
        for image, truth in zip(images, found, strict=True):
            assert_close(spec.forward(image).last_hidden_state[0], truth, TOLERANCE)
        return
    assert_same_function(model, tmp_path, pixels(model))


@EVERY
def test_attention_weights(kind, tmp_path):
    model = random_model(kind, attention="float64_eager")
    spec, images = ours(model, tmp_path), pixels(model)
    found = model(torch.tensor(images), output_attentions=True).attentions
    assert len(found) == 3
    for b, image in enumerate(images):
        for truth, weights in zip(found, spec.trace(image).attentions, strict=True):
            assert_close(weights, as_numpy(truth)[b], TOLERANCE)


def test_eager_attention_computes_its_softmax_in_float32(tmp_path):
    """Why `attentions` are compared with an attention of our own."""
    model = random_model("ViTModel", attention="eager")
    spec, images = ours(model, tmp_path), pixels(model)
    found = model(torch.tensor(images), output_attentions=True).attentions
    error = relative_error(spec.trace(images[0]).attentions[0], as_numpy(found[0])[0])
    assert 1e-10 < error < 1e-6


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("ViTModel", {"use_mask_token": True}),
        ("ViTForMaskedImageModeling", {}),
        ("Dinov2Model", {}),
    ],
)
def test_masked_patches(kind, build, tmp_path):
    model = random_model(kind, build, image_size=12)
    masks = np.random.default_rng(3).random((2, 9 if kind != "ViTModel" else 12)) < 0.5
    assert_same_function(model, tmp_path, pixels(model), masks)


def test_masked_image_modelling_and_its_loss(tmp_path):
    """The loss of one image, which sends gradients to the pixels twice."""
    model = random_model("ViTForMaskedImageModeling", image_size=12)
    spec, images = ours(model, tmp_path), pixels(model, batch=1)
    patches = np.random.default_rng(3).random(9) < 0.5
    x = torch.tensor(images, requires_grad=True)
    torch.set_default_dtype(torch.float64)  # in which it counts the masked pixels
    try:
        found = model(x, bool_masked_pos=torch.tensor(patches[None]))
    finally:
        torch.set_default_dtype(torch.float32)
    found.loss.backward()
    mask = np.kron(patches.reshape(3, 3), np.ones((4, 4))).astype(bool)
    conditions = Conditions(masked_patches=patches)
    reconstruction = spec.forward(images[0], conditions).reconstruction
    assert_close(reconstruction, as_numpy(found.reconstruction)[0], TOLERANCE)
    loss = masked_error(images[0], reconstruction, mask)
    assert_close(loss, as_numpy(found.loss), TOLERANCE)
    d_r = masked_error_backward(images[0], reconstruction, mask)
    grads, d_image = spec.backward(images[0], d_reconstruction=d_r, conditions=conditions)
    assert_close(d_image - d_r, as_numpy(x.grad)[0], TOLERANCE)
    d_theirs = theirs_by_our_names(model, lambda p: p.grad)
    assert_same_gradients(grads.to_flat(), d_theirs, TOLERANCE)


@pytest.mark.parametrize("size", [(12, 12), (8, 20), (28, 17), (5, 9), (13, 12)])
@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_interpolated_positions(kind, size, tmp_path):
    model = random_model(kind, image_size=12, patch_size=4)
    assert_same_function(model, tmp_path, pixels(model, size=size), interpolate=True)


@pytest.mark.parametrize("size", [(12, 12), (20, 20), (28, 17)])
def test_interpolated_positions_of_dinov2(size, tmp_path):
    """It interpolates without being asked, and always in float32."""
    model = random_model("Dinov2Model", image_size=12)
    tolerance = TOLERANCE if size == (12, 12) else 1e-5
    assert_same_function(model, tmp_path, pixels(model, size=size), tolerance=tolerance)


# ---- at full size --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [192, 384, 768], ids=["ViT-Ti", "ViT-S", "ViT-B"])
def test_at_full_size_in_float64(width, tmp_path):
    sizes = {"hidden_size": width, "num_attention_heads": width // 64, "num_hidden_layers": 12,
             "intermediate_size": 4 * width, "num_channels": 3, "image_size": 224,
             "patch_size": 16}  # fmt: skip
    model = random_model("ViTForImageClassification", num_labels=1000, **sizes)
    assert_same_function(model, tmp_path, pixels(model, batch=1))


def test_a_vit_base_in_float32(tmp_path):
    """Two orders of the same sums in float32, through twelve layers of 768."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(num_labels=1000)
    model = transformers.ViTForImageClassification(config).eval()
    images = pixels(model, batch=1).astype(np.float32)
    with torch.no_grad():
        truth = as_numpy(model(torch.tensor(images)).logits)[0]
    logits = ours(model, tmp_path).forward(images[0]).logits
    assert logits.dtype == np.float32
    assert np.abs(logits - truth).max() <= 1e-5 * truth.std()


# ---- files ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [None, 4000], ids=["one file", "shards"])
def test_transformers_loads_what_we_save(kind, dtype, limit, tmp_path):
    config, flat = CONFIGS[kind], parameters(CONFIGS[kind], dtype)
    save_checkpoint(tmp_path / "ours", config, flat, max_shard_size=limit)
    cls = getattr(transformers, kind)
    model, info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {key: len(value) for key, value in info.items()} == dict.fromkeys(info, 0)
    assert model.dtype == getattr(torch, dtype)
    model.save_pretrained(tmp_path / "theirs")
    found = load_checkpoint(tmp_path / "theirs")
    assert found.config == config
    assert_same_bits(found.flat, flat)


@EVERY
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_we_write_the_files_that_transformers_writes(kind, dtype, tmp_path):
    model = random_model(kind, dtype=dtype)
    model.save_pretrained(tmp_path / "theirs")
    found = load_checkpoint(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", found.config, found.flat, found.labels, found.architecture)
    first, second = (
        json.loads((tmp_path / one / "config.json").read_text()) for one in ("theirs", "ours")
    )
    assert {k: v for k, v in first.items() if k != "transformers_version"} == {
        k: v for k, v in second.items() if k != "transformers_version"
    }
    first, second = (
        split_safetensors((tmp_path / one / "model.safetensors").read_bytes())
        for one in ("theirs", "ours")
    )
    assert first == second


def test_bare_models_load_with_the_options_that_the_files_cannot_say(tmp_path):
    config = replace(CONFIGS["ViTModel"], pooler_dim=0, mask_token=True)
    flat = parameters(config)
    save_checkpoint(tmp_path, config, flat)
    _, info = transformers.ViTModel.from_pretrained(
        tmp_path, output_loading_info=True, add_pooling_layer=False, use_mask_token=True
    )
    assert {key: len(value) for key, value in info.items()} == dict.fromkeys(info, 0)


@pytest.mark.parametrize("kind", ["ViTModel", "Dinov2Model"])
def test_rates_and_labels_arrive(kind, tmp_path):
    rates = {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.5}
    model = random_model(kind, **rates, id2label={0: "cat", 1: "dog", 2: "crane"})
    model.save_pretrained(tmp_path / "theirs")
    found = load_checkpoint(tmp_path / "theirs")
    both = DropoutRates(embedding=0.25, attention=0.5)
    if kind == "ViTModel":
        both = replace(both, projection=0.25, output=0.25)
    assert found.config.dropout == both
    assert found.labels.names == ("cat", "dog", "crane")
    save_checkpoint(tmp_path / "ours", found.config, found.flat, found.labels)
    again = getattr(transformers, kind).from_pretrained(tmp_path / "ours").config
    assert again.id2label == model.config.id2label
    assert again.hidden_dropout_prob == 0.25


def test_shards_by_transformers(tmp_path):
    model = random_model("ViTForImageClassification")
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    assert len([*tmp_path.glob("model-*.safetensors")]) > 2
    found = load_checkpoint(tmp_path)
    truth = theirs_by_our_names(model, lambda p: p)
    assert_same_bits(found.flat, {name: truth[name] for name in found.flat})


# ---- PyTorch's own files -------------------------------------------------------------------------


def saved_by_torch(folder, value, **options):
    folder.mkdir(exist_ok=True)
    torch.save(value, folder / "pytorch_model.bin", **options)


@EVERY
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])
def test_a_state_dict_is_read(kind, dtype, archive, tmp_path):
    """With the names that parameters have in memory."""
    model = random_model(kind, dtype=dtype)
    model.config.architectures = [kind]
    model.config.save_pretrained(tmp_path)
    saved_by_torch(tmp_path, model.state_dict(), _use_new_zipfile_serialization=archive)
    found = load_checkpoint(tmp_path, use_pytorch=True)
    model.save_pretrained(tmp_path / "safe")
    assert_same_bits(found.flat, load_checkpoint(tmp_path / "safe").flat)


def test_shards_of_pytorch_are_read(tmp_path):
    model = random_model("ViTModel")
    model.save_pretrained(tmp_path / "safe")
    model.config.architectures = ["ViTModel"]
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    where = {tensor: names[i % 2] for i, tensor in enumerate(state)}
    for name in names:
        torch.save({t: v for t, v in state.items() if where[t] == name}, tmp_path / name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    found = load_checkpoint(tmp_path, use_pytorch=True)
    assert_same_bits(found.flat, load_checkpoint(tmp_path / "safe").flat)


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_pickle_is_run(tmp_path):
    model = random_model("ViTModel")
    model.config.save_pretrained(tmp_path)
    hostile = Hostile(tmp_path / "made")
    for value in (hostile, model.state_dict() | {"x": hostile}):
        for archive in (True, False):
            saved_by_torch(tmp_path, value, _use_new_zipfile_serialization=archive)
            with pytest.raises(CheckpointError, match="cannot read it as plain weights"):
                load_checkpoint(tmp_path, use_pytorch=True)
    assert not (tmp_path / "made").exists()


def test_what_is_no_dict_of_dense_tensors_is_refused(tmp_path):
    state = random_model("ViTModel").state_dict()
    for value, said in (
        ([1, 2], "expected tensors by name, found a list"),
        (state | {3: torch.ones(2)}, "expected names of tensors, found 3"),
        ({"state_dict": state, "epoch": 3}, "'epoch': expected a tensor, found a int"),
        (state | {"a": torch.eye(3).to_sparse()}, "'a': expected a dense tensor"),
        (state | {"a": torch.ones(3, dtype=torch.int64)}, "'a': superfluous"),
    ):
        saved_by_torch(tmp_path, value)
        random_model("ViTModel").config.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path, use_pytorch=True)
        assert said in str(caught.value)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])
def test_damaged_pickles_are_read_rightly_or_refused(archive, tmp_path):
    model = random_model("ViTModel", num_hidden_layers=1)
    model.config.architectures = ["ViTModel"]
    model.config.save_pretrained(tmp_path)
    saved_by_torch(tmp_path, model.state_dict(), _use_new_zipfile_serialization=archive)
    path, rng = tmp_path / "pytorch_model.bin", np.random.default_rng(5)
    content = path.read_bytes()
    shapes = {n: a.shape for n, a in load_checkpoint(tmp_path, use_pytorch=True).flat.items()}
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        begin = int(rng.integers(len(damaged)))
        if rng.random() < 0.3:
            del damaged[begin:]
        else:
            damaged[begin] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(tmp_path, use_pytorch=True)
            assert {n: a.shape for n, a in found.flat.items()} == shapes
        except CheckpointError:
            refused += 1
    assert refused > 30


# ---- the hub's cache -----------------------------------------------------------------------------

OFFLINE = """
from vitfast.checkpoints import CheckpointError, load_checkpoint
print(load_checkpoint("owner/name").architecture)
try:
    load_checkpoint("owner/other")
except CheckpointError as error:
    print(error)
"""


def test_a_name_is_found_in_the_cache_offline(tmp_path):
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--name"
    folder = repository / "snapshots" / commit
    save_checkpoint(folder, CONFIGS["Dinov2Model"], parameters(CONFIGS["Dinov2Model"]))
    (repository / "blobs").mkdir()
    for i, file in enumerate([*folder.iterdir()]):
        file.rename(repository / "blobs" / str(i))
        file.symlink_to(f"../../blobs/{i}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    first, *rest = done.stdout.splitlines()
    assert first == "Dinov2Model"
    assert len(rest) == 1
    assert rest[0].startswith("'owner/other': there is no such folder, and the Hugging Face hub")
