"""Writing a checkpoint: all of it or nothing, whatever happens on the way."""

import errno
import itertools
import json
import os
import sys
from dataclasses import replace

import pytest

from support.checkpoints import (
    CONFIG,
    CONFIGS,
    INDEX,
    WEIGHTS,
    assert_same_bits,
    other_model,
    refusal,
    saved_classifier,
    snapshot,
    split_safetensors,
)
from vitfast.checkpoints import (
    CheckpointError,
    InvalidTensors,
    load_checkpoint,
    save_checkpoint,
)
from vitspec.vision_transformer_config import DropoutRates


@pytest.fixture
def classifier(tmp_path):
    """A folder with a small classification model, and its parameters."""
    return saved_classifier(tmp_path / "model")


class Failing(dict):
    """Arrays of which one cannot be had."""

    def __getitem__(self, name):
        if name == "encoder.layers.1.ffn.w1" and sys._getframe(1).f_code.co_name == "make":
            raise ZeroDivisionError("the seventh tensor")
        return super().__getitem__(name)


def test_a_failure_while_tensors_are_written_changes_nothing(classifier):
    folder, _ = classifier
    before = snapshot(folder)
    config, flat = other_model()
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(folder, config, Failing(flat), max_shard_size=900)
    assert snapshot(folder) == before


def test_a_failure_leaves_no_new_folder(tmp_path):
    config, flat = other_model()
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path / "a" / "b", config, Failing(flat))
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_at_any_moment_changes_nothing(call, classifier, monkeypatch):
    folder, _ = classifier
    before = snapshot(folder)
    config, flat = other_model()
    true, calls, limit = getattr(os, call), itertools.count(), 0

    def fail(*arguments):
        if next(calls) == limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true(*arguments)

    monkeypatch.setattr(os, call, fail)
    for limit in range(100):  # noqa: B007 - read by `fail`
        calls = itertools.count()
        try:
            save_checkpoint(folder, config, flat, max_shard_size=900)
        except CheckpointError as error:
            said = str(error)
        else:
            break
        assert "No space left on device; nothing was changed" in said
        assert snapshot(folder) == before
    assert limit > 4
    assert_same_bits(load_checkpoint(folder).flat, flat)


def test_a_machine_that_stops_between_two_files_leaves_nothing_mixed(classifier, monkeypatch):
    folder, old = classifier
    config, new = other_model()
    true, calls = os.replace, itertools.count()
    outcomes = set()
    for limit in range(100):
        calls = itertools.count()

        def stop(*arguments, limit=limit, calls=calls):
            if next(calls) >= limit:  # and so does every call that would put things back
                raise KeyboardInterrupt
            return true(*arguments)

        target = folder.parent / f"stopped-{limit}"
        save_checkpoint(target, config, old, max_shard_size=900)
        monkeypatch.setattr(os, "replace", stop)
        try:
            save_checkpoint(target, config, new, max_shard_size=900)
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", true)
        else:
            monkeypatch.undo()
            break
        if (target / CONFIG).exists():
            assert_same_bits(load_checkpoint(target).flat, old)
            outcomes.add("as before")
        else:
            refusal(target)
            outcomes.add("refused")
    assert outcomes == {"as before", "refused"}
    assert_same_bits(load_checkpoint(target).flat, new)


def test_an_earlier_checkpoint_is_replaced_and_other_files_stay(classifier):
    folder, _ = classifier
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "README.md").write_text("# mine")
    config, flat = other_model()
    for limit, count in ((900, 0), (5000, 0), (None, 1), (700, 0)):
        save_checkpoint(folder, config, flat, max_shard_size=limit)
        names = {p.name for p in folder.iterdir()}
        shards = {n for n in names if n.startswith("model-")}
        assert (WEIGHTS in names) == bool(count)
        assert {*names} - shards - {WEIGHTS, INDEX} == {
            CONFIG, "preprocessor_config.json", "README.md",
        }  # fmt: skip
        if shards:
            assert {*json.loads((folder / INDEX).read_text())["weight_map"].values()} == shards
            for name in shards:
                size = len(split_safetensors((folder / name).read_bytes())[1])
                tensors = len(split_safetensors((folder / name).read_bytes())[0]) - 1
                assert size <= limit or tensors == 1
        assert_same_bits(load_checkpoint(folder).flat, flat)


def test_a_link_in_the_folder_is_replaced_and_not_followed(classifier, tmp_path):
    folder, _ = classifier
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(elsewhere)
    save_checkpoint(folder, *other_model())
    assert elsewhere.read_text() == "precious"
    assert not (folder / WEIGHTS).is_symlink()


def test_weights_of_another_format_are_not_left_beside_ours(classifier):
    (classifier[0] / "pytorch_model.bin").write_bytes(b"")
    before = snapshot(classifier[0])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds other weights"):
        save_checkpoint(classifier[0], *other_model())
    assert snapshot(classifier[0]) == before


def test_new_files_have_the_permissions_of_any_new_file(classifier):
    plain = classifier[0] / "plain"
    plain.write_text("")
    for name in (WEIGHTS, CONFIG):
        assert (classifier[0] / name).stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pool": "mean"}, "pool must be 'cls', got 'mean'"),
        ({"output_bias": False}, "output_bias must be True"),
        ({"cls_token": False, "pool": "mean"}, "cls_token must be True"),
        ({"pooler_dim": 4}, "ViTForImageClassification has no pooler"),
        ({"mask_token": True}, "ViTForImageClassification has no mask token"),
        ({"head_count": 3}, "headCount_dvd_embedDim"),
        ({"dropout": DropoutRates(embedding=0.1)}, "the dropout rates must be"),
        ({"dropout": DropoutRates(stochastic_depth=0.1)}, "the dropout rates must be"),
        ({"layer_scale": True}, "hidden_dim must be a multiple of embed_dim"),
        ({"decoder_stride": 4}, "ViTForMaskedImageModeling has no classifier"),
    ],
)
def test_what_transformers_cannot_compute_is_not_written(fields, said, tmp_path):
    config = replace(CONFIGS["ViTForImageClassification"], **fields)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path / "new", config, {})
    assert said in str(caught.value)
    assert snapshot(tmp_path) == {}


def test_every_fault_of_the_arrays_is_listed_before_anything_is_written(tmp_path):
    config, flat = other_model()
    flat["cls_token"] = flat["cls_token"][:3]
    flat["final_norm_beta"] = flat["final_norm_beta"].astype(int)
    flat["extra"] = flat.pop("head.bias")
    with pytest.raises(InvalidTensors) as caught:
        save_checkpoint(tmp_path / "new", config, flat)
    assert len(caught.value.problems) == 5
    for said in ("cls_token: expected shape (8,)", "final_norm_beta: expected one of float64",
                 "'extra': unexpected", "head.bias: missing", "mix the scalar types"):  # fmt: skip
        assert said in str(caught.value)
    assert snapshot(tmp_path) == {}
