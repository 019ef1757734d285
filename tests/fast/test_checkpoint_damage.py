"""Checkpoints that are damaged or hostile: one clear line, and never the wrong model."""

import json
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from support.checkpoints import (
    CONFIG,
    CONFIGS,
    INDEX,
    WEIGHTS,
    assert_same_bits,
    edit_json,
    join_safetensors,
    other_model,
    parameters,
    refusal,
    saved_classifier,
    sharded,
    split_safetensors,
)
from vitfast.checkpoints import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from vitspec.models.vision_transformer_parameters import parameter_shapes


@pytest.fixture
def classifier(tmp_path):
    """A folder with a small classification model, and its parameters."""
    return saved_classifier(tmp_path / "model")


# ---- files that are not what they seem -----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\\b", "C:x",
     "nul\0byte", "new\nline", "missing.safetensors", "folder", "x" * 300],
)  # fmt: skip
def test_an_index_names_files_of_its_folder_only(name, tmp_path):
    folder = tmp_path / "model"
    sharded(folder)
    save_checkpoint(tmp_path / "other", *other_model())
    (tmp_path / "other" / WEIGHTS).rename(tmp_path / "secret.safetensors")
    (folder / "folder").mkdir()
    edit_json(folder / INDEX, lambda i: i["weight_map"].update({"classifier.bias": name}))
    said = refusal(folder)
    assert "\n" not in said
    assert any(
        text in said
        for text in ("expected the name of a file", "no such file", "regular file", "too long")
    )


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_links_that_leave_the_folder_are_not_followed(name, classifier, tmp_path):
    folder, flat = classifier
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert "links to a file outside of the folder" in refusal(folder)
    (folder / name).unlink()
    outside.rename(folder / "inside")
    (folder / name).symlink_to("inside")
    assert_same_bits(load_checkpoint(folder).flat, flat)
    link = tmp_path / "link"
    link.symlink_to(folder)  # the folder itself is the caller's choice
    assert_same_bits(load_checkpoint(link).flat, flat)


def test_the_cache_of_the_hub_has_links_to_its_blobs(classifier, tmp_path):
    folder, flat = classifier
    cache = tmp_path / "models--owner--name"
    snapshot_ = cache / "snapshots" / "0123"
    snapshot_.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).rename(cache / "blobs" / name[:5])
        (snapshot_ / name).symlink_to(f"../../blobs/{name[:5]}")
    assert_same_bits(load_checkpoint(snapshot_).flat, flat)
    (tmp_path / "secret").write_bytes((cache / "blobs" / WEIGHTS[:5]).read_bytes())
    (snapshot_ / WEIGHTS).unlink()
    (snapshot_ / WEIGHTS).symlink_to("../../../secret")
    assert "links to a file outside" in refusal(snapshot_)


def test_pipes_loops_and_folders_are_not_opened(classifier):
    folder, _ = classifier
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        assert "expected a regular file; it was not opened" in refusal(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(name)
        assert f"{name}: cannot be read" in refusal(folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        assert "expected a regular file" in refusal(folder)
        (folder / name).rmdir()
        (folder / "kept").rename(folder / name)


def test_tensors_of_shards_are_where_the_index_says(tmp_path):
    flat = sharded(tmp_path)
    assert_same_bits(load_checkpoint(tmp_path).flat, flat)
    index = json.loads((tmp_path / INDEX).read_text())
    where = index["weight_map"]
    first, last = min(where.values()), max(where.values())
    name = next(name for name, file in where.items() if file == first)
    for change, said in (
        ({name: last}, f"tensor '{name}' is in '{first}', and the index says '{last}'"),
        ({"more": last}, f"tensor 'more' is not in '{last}', where the index says it is"),
        (None, f"tensor '{name}' is in '{first}', and the index does not have it"),
        ({name: 3}, "weight_map: expected an object of file names"),
    ):
        new = {n: f for n, f in where.items() if n != name or change} | (change or {})
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": new}))
        assert said in refusal(tmp_path)
    for text in ("{}", '{"weight_map": []}', "[]", "3", ""):
        (tmp_path / INDEX).write_text(text)
        assert INDEX in refusal(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    header, data = split_safetensors((tmp_path / last).read_bytes())
    twice, more = split_safetensors((tmp_path / first).read_bytes())
    begin, end = twice[name]["data_offsets"]
    offsets = [len(data), len(data) + end - begin]
    header[name] = twice[name] | {"data_offsets": offsets}
    (tmp_path / last).write_bytes(join_safetensors(header, data + more[begin:end]))
    assert f"tensor '{name}' is in '{last}', and the index says '{first}'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "expected JSON in UTF-8"),
        (b"\xff\xfe{}", "expected JSON in UTF-8"),
        (b"{", "expected JSON in UTF-8"),
        (b"[]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found None"),
        (b"9" * 5000, "expected JSON"),
        (b'{"a": ' * 100_000, "nests too deeply"),
        (b'{"model_type": "vit", "model_type": "vit"}', "the name 'model_type' stands twice"),
        (b'{"id2label": {"0": "a", "0": "b"}}', "the name '0' stands twice"),
        (b'{"layer_norm_eps": NaN}', "NaN is no JSON"),
        (b'{"layer_norm_eps": -Infinity}', "-Infinity is no JSON"),
        (b'{"layer_norm_eps": 1e999}', "the number 1e999 is too large"),
        (b'{"model_type": "\\ud800\\n"}', "got '\\ud800\\n'"),
        (b'{"model_type": "' + b"x" * 5000 + b'"}', "xxx...'"),
        (b'{"model_type": "vit", "hidden_size": 1' + b"0" * 4000 + b"}", "more than 20 digits"),
    ],
)  # fmt: skip
def test_hostile_json_is_one_line(text, said, classifier):
    (classifier[0] / CONFIG).write_bytes(text)
    message = refusal(classifier[0])
    assert said in message
    assert "\n" not in message
    assert len(message) < 1000


def test_huge_files_are_not_read(classifier):
    folder, _ = classifier
    with open(folder / CONFIG, "ab") as file:
        file.truncate(2**40)
    assert "expected at most 33554432 bytes, found 1099511627776" in refusal(folder)


def headers():
    """Hostile headers, as a change of a good one (or a text), and what is said."""
    name = "classifier.bias"

    def set_(**fields):
        return lambda h: h[name].update(fields)

    yield "cut off", lambda content: content[:-1], "it is cut off"
    yield "no file", lambda content: content[:7], "no safetensors file: it has 7 bytes"
    yield "empty", lambda content: b"", "no safetensors file"
    yield "more data", lambda content: content + b"\0", "there is something behind the tensors"
    huge = (2**60).to_bytes(8, "little")
    yield "huge header", lambda content: huge + content[8:], "a header of 1152921504606846976 bytes"
    longer = lambda content: (len(content) - 7).to_bytes(8, "little") + content[8:]  # noqa: E731
    yield "header beyond the end", longer, "it is cut off, or no safetensors file"
    big = (2**24 + 1).to_bytes(8, "little") + b" " * (2**24 + 1)
    yield "big header", lambda content: big, "expected at most 16777216"
    for label, change, said in (
        ("no object", lambda h: h.update({name: []}), "expected an object of dtype"),
        ("more keys", set_(more=1), "expected an object of dtype"),
        ("unknown dtype", set_(dtype="F4"), "dtype: expected one of F64"),
        ("dtype is no text", set_(dtype=["F32"]), "dtype: expected one of F64"),
        ("negative shape", set_(shape=[-3]), "natural numbers"),
        ("Boolean shape", set_(shape=[True, 3]), "natural numbers"),
        ("float shape", set_(shape=[3.0]), "natural numbers"),
        ("endless shape", set_(shape=[1] * 1000), "at most 8 natural numbers"),
        ("huge shape", set_(shape=[2**52] * 8), "its shape needs"),
        ("number beyond all", set_(shape=[2**70]), "natural numbers"),
        ("offsets in disorder", set_(data_offsets=[12, 0]), "two natural numbers in order"),
        ("three offsets", set_(data_offsets=[0, 12, 12]), "two natural numbers in order"),
        ("offsets beyond", set_(data_offsets=[2**40, 2**40 + 12]), "leaves a gap"),
        ("too few bytes", set_(shape=[4]), "its shape needs 16 bytes, its offsets give 12"),
        ("overlap", lambda h: h.update(again=h[name]), "overlaps with another"),
        ("gap", lambda h: h.pop(name), "leaves a gap"),
        ("metadata", lambda h: h.update(__metadata__={"a": 1}), "__metadata__: expected"),
        ("metadata list", lambda h: h.update(__metadata__=[]), "__metadata__: expected"),
    ):

        def rewrite(content, change=change):
            header, data = split_safetensors(content)
            change(header)
            return join_safetensors(header, data)

        yield label, rewrite, said
    for text, said in ((b"[]", "expected a JSON object"), (b"{", "the header: expected JSON"),
                       (b'{"a":1,"a":1}', "stands twice"), (b"", "expected JSON"),
                       (b'{"a":' * 10_000, "nests too deeply")):  # fmt: skip
        yield (
            f"header {text[:9]!r}",
            lambda content, text=text: join_safetensors(text, split_safetensors(content)[1]),
            said,
        )


@pytest.mark.parametrize(
    ("change", "said"), [pytest.param(*rest, id=label) for label, *rest in headers()]
)
def test_hostile_headers_are_one_line(change, said, classifier):
    path = classifier[0] / WEIGHTS
    path.write_bytes(change(path.read_bytes()))
    message = refusal(classifier[0])
    assert said in message
    assert "\n" not in message


def test_a_file_that_changes_after_loading_is_noticed(classifier):
    folder, _ = classifier
    found = load_checkpoint(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        found.flat["cls_token"]
    (folder / WEIGHTS).write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        found.flat["cls_token"]


# ---- fuzzing -------------------------------------------------------------------------------------


def mutate(content, rng):
    """A damaged copy: cut off, a bit flipped, bytes removed, inserted, exchanged or overwritten."""
    data = bytearray(content)
    begin = int(rng.integers(len(data)))
    # Most of a file is data, most of what can go wrong is in front of it.
    begin = begin if rng.random() < 0.5 else begin % min(len(data), 3000)
    length = int(rng.integers(1, 9))
    match rng.integers(6):
        case 0:
            del data[begin:]
        case 1:
            data[begin] ^= 1 << int(rng.integers(8))
        case 2:
            del data[begin : begin + length]
        case 3:
            data[begin:begin] = rng.bytes(length)
        case 4:
            data[begin : begin + length] = rng.bytes(length)
        case _:
            data[begin : begin + length] = data[:length]
    return bytes(data)


@pytest.mark.parametrize(
    ("which", "limit"), [("weights", None), ("weights", 2000), ("index", 2000), ("config", None)]
)
def test_damaged_files_load_rightly_or_are_refused(which, limit, tmp_path):
    config = replace(CONFIGS["ViTForImageClassification"], num_layers=1)
    flat = parameters(config)
    save_checkpoint(tmp_path, config, flat, ["cat", "dog", "crane"], max_shard_size=limit)
    target = {"weights": min(tmp_path.glob("*.safetensors")), "index": tmp_path / INDEX,
              "config": tmp_path / CONFIG}[which]  # fmt: skip
    content, rng = target.read_bytes(), np.random.default_rng(5)
    data_at = 8 + int.from_bytes(content[:8], "little")
    loaded = refused = 0
    for _ in range(150):
        damaged = mutate(content, rng)
        target.write_bytes(damaged)
        try:
            found = load_checkpoint(tmp_path)
        except CheckpointError as error:
            refused += 1
            assert all("\n" not in problem for problem in error.problems)  # noqa: PT017
            continue
        loaded += 1
        assert {n: a.shape for n, a in found.flat.items()} == parameter_shapes(found.config)
        assert all(np.isfinite(a).all() for a in found.flat.values())
        if which == "config":
            continue  # another number may be as good
        assert found.config == config
        same = which == "index" or damaged[data_at:] == content[data_at:]
        assert same or (which == "weights" and len(damaged) == len(content))
        if same:
            assert_same_bits(found.flat, flat)
    assert refused > 25
    assert loaded > (0 if which == "index" else 5)


# ---- names on the hub, and PyTorch that is not there ---------------------------------------------


def fake_hub(monkeypatch, answer):
    """A huggingface_hub whose snapshot_download does this; what it is asked is returned."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return answer()

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_name_is_asked_of_the_hub_for_the_needed_files_only(classifier, monkeypatch):
    folder, flat = classifier
    asked = fake_hub(monkeypatch, lambda: str(folder))
    assert_same_bits(load_checkpoint("owner/name", revision="v1").flat, flat)
    refusal("owner/name", use_pytorch=True)
    (name, first), (_, second) = asked
    assert (name, first["revision"], second["revision"]) == ("owner/name", "v1", None)
    configurations = ["config.json", "preprocessor_config.json"]
    assert first["allow_patterns"] == [*configurations, WEIGHTS, INDEX, "model-*-of-*.safetensors"]
    assert second["allow_patterns"] == [
        *configurations, "pytorch_model.bin", "pytorch_model.bin.index.json",
        "pytorch_model-*-of-*.bin",
    ]  # fmt: skip


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def answer():
        raise RuntimeError("404 Client Error.\n\nRepository Not Found for url: ...\nmore")

    fake_hub(monkeypatch, answer)
    said = refusal("owner/name")
    assert said == (
        "'owner/name': there is no such folder, and the Hugging Face hub did not give it; "
        "RuntimeError: 404 Client Error."
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "python -m pip install 'vitspec[fast]'" in refusal("owner/name")


@pytest.mark.parametrize("path", ["/no/such/folder", "./model", "a/b/c", "-x", "a b"])
def test_paths_are_not_asked_of_the_hub(path, monkeypatch):
    asked = fake_hub(monkeypatch, lambda: "nowhere")
    assert "there is nothing of that name" in refusal(path)
    assert asked == []


def test_a_folder_has_no_revisions_and_a_file_is_no_folder(classifier):
    assert "leave out revision=" in refusal(classifier[0], revision="main")
    assert "it is a file" in refusal(classifier[0] / CONFIG)


def test_without_pytorch_its_files_name_the_extra(classifier, monkeypatch):
    folder, _ = classifier
    assert "found neither; there is model.safetensors: pass use_pytorch=False" in refusal(
        folder, use_pytorch=True
    )
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "there is pytorch_model.bin: pass use_pytorch=True" in refusal(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "python -m pip install 'vitspec[interop]'" in refusal(folder, use_pytorch=True)
