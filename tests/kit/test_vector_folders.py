"""Folders of test vectors: export, answers and grades, and whatever a folder may hold instead."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitspec.testing.catalogue import deviation
from vitspec.testing.reference import SpecImplementation
from vitspec.testing.vectors import VectorError, export, folder, grade_report, verify
from vitspec.testing.vectors.format import (
    MAX_FILE,
    dump_safetensors,
    parse_json,
    parse_safetensors,
    read_file,
    write_file,
)  # fmt: skip
from vitspec.testing.vectors.layers import evaluate_layer

MODEL, CLS, LAYER = "basic-vit", "basic-cls", "basic-layer-norm"
ILL_FORMED = "ill-formed-no-heads"


def answer(root, dtype="float32", mistakes=(), layers=True):
    """What a program would write that is the specification, perhaps with mistakes."""
    for vector in map(folder.load, folder.ids()):
        if vector.kind == "ill-formed":
            (root / vector.id / "rejected.txt").write_text("not well-formed\n")
        elif vector.kind == "model":
            point = vector.point()
            program = SpecImplementation(point.spec, mistakes=mistakes)
            own = [x.astype(dtype) for x in (point.images, point.cotangent)]
            params = {name: x.astype(dtype) for name, x in point.params.items()}
            d_params, d_images = program.vjp(point.config, params, *own)
            logits = program.forward(point.config, params, own[0])["logits"]
            save(root, vector.id, {"logits": logits, "image": d_images} | d_params)
        elif layers:
            inputs = {n: x if n == "mask" else x.astype(dtype) for n, x in vector.inputs.items()}
            outputs = evaluate_layer(vector.case["layer"], inputs, vector.case["settings"])
            save(root, vector.id, outputs)


def save(root, case_id, arrays):
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    save_file(arrays, root / case_id / "result.safetensors")


def results(root, dtype="float32"):
    """By case, the results that did not pass."""
    report = grade_report(root, dtype)
    return {(r.place.index, r.check): r for r in report.results if
            r.status != "passed"}  # fmt: skip


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    root = tmp_path_factory.mktemp("answers") / "vectors"
    export(root)
    answer(root)
    return root


@pytest.fixture
def root(answered, tmp_path):
    return shutil.copytree(answered, tmp_path / "vectors")


@pytest.fixture
def result(root):
    """The path of an answer, to damage."""
    return root / MODEL / "result.safetensors"


# ---- as it should be ---------------------------------------------------------------------------


def test_the_installed_vectors_are_as_released():
    assert verify() == len(folder.ids()) > 0


def test_an_export_holds_prompts_and_no_answers(tmp_path):
    assert export(tmp_path) == len(folder.ids())
    for case_id in folder.ids():
        names = {path.name for path in (tmp_path / case_id).iterdir()}
        ill_formed = case_id.startswith("ill-formed")
        assert names == {"case.json"} if ill_formed else {"case.json", "inputs.safetensors"}
        case = json.loads((tmp_path / case_id / "case.json").read_text())
        assert case["id"] == case_id
        assert not case.keys() & {"tolerance", "kill_margin", "flags", "judges", "violations"}
    listed = json.loads((tmp_path / "index.json").read_text())["files"]
    assert listed.keys() == {
        p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*") if p.is_file()
    }


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    export(tmp_path)
    found = load_file(tmp_path / MODEL / "inputs.safetensors")
    expected = folder.load(MODEL).inputs
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_answers_conform(tmp_path, dtype):
    export(tmp_path)
    answer(tmp_path, dtype)
    report = grade_report(tmp_path, dtype)
    assert report.conforms, results(tmp_path, dtype)
    assert report.verdict.startswith("conforms, as tested")
    assert report.count()["failed"] == 0
    assert len(report.results) > len(folder.ids())  # forward and vjp of each model


def test_float32_is_not_float64(root):
    report = grade_report(root, "float64")
    assert report.exit_code == 1
    assert report.verdict == "does not conform"
    failed = next(r for r in report.results if r.status == "failed")
    assert report.reproduce(failed) == f"vitspec vectors grade {root} --dtype float64"


@pytest.mark.parametrize("mistake", ["layer-norm-eps-1e-5", "activation-gelu"])
def test_wrong_answers_do_not(tmp_path, mistake):
    export(tmp_path)
    answer(tmp_path, mistakes=[deviation(mistake)], layers=False)
    assert results(tmp_path)[MODEL, "vector.forward"].status == "failed"


def test_bfloat16_files_are_read(root, result):
    arrays = load_file(result)
    header, parts, at = {}, [], 0
    for name, x in arrays.items():
        part = (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": x.shape, "data_offsets": [at, at + len(part)]}
        at += len(part)
        parts.append(part)
    result.write_bytes(raw(header, b"".join(parts)))
    found, dtypes = parse_safetensors(result.read_bytes(), result)
    assert set(dtypes.values()) == {"BF16"}
    for name, x in arrays.items():  # cut off, not rounded: within 2**-7 of it
        assert np.all(np.abs(found[name] - x) <= 2.0**-7 * np.abs(x))
    assert (MODEL, "vector.forward") in results(root)  # as float32 it is wrong


def test_no_answers_are_nothing_to_grade(tmp_path):
    export(tmp_path)
    report = grade_report(tmp_path, "float32")
    assert report.exit_code == 3
    assert "run your program first" in report.results[0].reason


def test_layers_may_be_left_unanswered(root):
    (root / LAYER / "result.safetensors").unlink()
    assert results(root)[LAYER, "vector.layer"].status == "skipped"
    assert grade_report(root).conforms


def test_models_may_not(root, result):
    result.unlink()
    for check in ("vector.forward", "vector.vjp"):
        found = results(root)[MODEL, check]
        assert (found.status, found.reason[:7]) == ("failed", "missing")


def test_the_logits_alone_fail_by_name(root, result):
    save(root, MODEL, {"logits": load_file(result)["logits"]})
    found = results(root)
    assert (MODEL, "vector.forward") not in found
    reason = found[MODEL, "vector.vjp"].reason
    assert reason.startswith("encoder.layers.0.ffn.b1: missing, expected shape (12,); ")
    assert reason.endswith("; ...")


def test_wrong_names_shapes_and_types_are_listed(root, result):
    arrays = load_file(result)
    arrays["head"] = arrays.pop("head.weights")
    arrays["image"] = arrays["image"][0]
    arrays["head.bias"] = arrays["head.bias"].astype(np.int32)
    save(root, MODEL, arrays)
    reason = results(root)[MODEL, "vector.vjp"].reason
    assert "'head': unexpected name" in reason
    assert "head.weights: missing" in reason
    assert "image: expected shape" in reason
    assert "head.bias: expected floats of the precision, got I32" in reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["logits", "head.bias"])
def test_one_number_that_is_none_fails(root, result, value, name):
    arrays = load_file(result)
    arrays[name].flat[-1] = value
    save(root, MODEL, arrays)
    check = "vector.forward" if name == "logits" else "vector.vjp"
    (failure,) = results(root)[MODEL, check].failures
    assert failure.tensor == name
    assert failure.error == np.inf


def test_a_rejected_model_fails(root):
    (root / MODEL / "rejected.txt").write_text("I do not like \x1b[31mit\n")
    found = results(root)[MODEL, "vector.forward"]
    assert found.status == "failed"
    assert found.reason == "rejected, but it is well-formed: I do not like [31mit"


def test_an_answered_ill_formed_case_fails(root):
    save(root, ILL_FORMED, {"logits": np.zeros((2, 5), np.float32)})
    assert "must be rejected" in results(root)[ILL_FORMED, "vector.ill-formed"].reason
    for path in (root / ILL_FORMED).iterdir():
        if path.name != "case.json":
            path.unlink()
    assert "missing" in results(root)[ILL_FORMED, "vector.ill-formed"].reason


# ---- export where something is -----------------------------------------------------------------


def test_a_second_export_mends_prompts_and_keeps_answers(root):
    (root / MODEL / "case.json").write_text("{}")
    export(root)
    assert grade_report(root).conforms


def test_nothing_is_exported_among_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(VectorError, match="not empty"):
        export(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_nor_where_the_index_is_of_something_else(tmp_path):
    (tmp_path / "index.json").write_text('{"schema": "mine"}')
    with pytest.raises(VectorError, match="expected the schema"):
        export(tmp_path)
    assert os.listdir(tmp_path) == ["index.json"]


def test_nor_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VectorError, match="expected a folder, found a file"):
        export(tmp_path / "file")


def test_an_export_follows_no_link(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    kept = outside / "kept"
    kept.write_text("mine")
    shutil.rmtree(root / CLS)
    (root / MODEL / "case.json").unlink()
    (root / MODEL / "case.json").symlink_to(kept)
    export(root)  # the link is replaced
    assert kept.read_text() == "mine"
    assert not (root / MODEL / "case.json").is_symlink()
    shutil.rmtree(root / CLS)
    (root / CLS).symlink_to(outside)
    with pytest.raises(VectorError, match="found a symbolic link"):
        export(root)
    assert os.listdir(outside) == ["kept"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


# ---- damaged and hostile -----------------------------------------------------------------------


def raw(header, data=b"", length=None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


REFUSED = {
    "empty": (b"", "no header in a file of 0 bytes"),
    "no header": (b"1234567", "no header in a file of 7 bytes"),
    "an absurd header": (b"\xff" * 64, "a header of 18446744073709551615 bytes"),
    "a header longer than the file": (raw({}, length=99), "a header of 99 bytes"),
    "a header that is no JSON": (raw(b"{'a': 1}"), "expected JSON"),
    "a header that is no object": (raw([]), "expected an object"),
    "a header that is no UTF-8": (raw(b'{"\xff": 1}'), "expected JSON in UTF-8"),
    "a name twice": (raw(b'{"a": 1, "a": 2}'), "'a' stands there twice"),
    "deep": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nests too deeply"),
    "a number beyond Python": (raw(b'{"a":' + b"9" * 10_000 + b"}"), "expected JSON"),
    "no entry": (raw({"a": 1}), "'a': expected an object of dtype, shape and data_offsets"),
    "an unknown type": (raw({"a": entry(0, 4, [1], "PICKLE")}, bytes(4)), "found 'PICKLE'"),
    "a negative shape": (raw({"a": entry(0, 4, [-1])}, bytes(4)), "natural numbers"),
    "a shape of truth values": (raw({"a": entry(0, 4, [True])}, bytes(4)), "natural numbers"),
    "a fractional offset": (raw({"a": entry(0.0, 4, [1])}, bytes(4)), "two numbers in order"),
    "offsets the wrong way round": (raw({"a": entry(4, 0, [1])}, bytes(4)), "in order"),
    "three offsets": (raw({"a": entry(0, 4, [1]) | {"data_offsets": [0, 2, 4]}}), "two numbers"),
    "many axes": (raw({"a": entry(0, 4, [1] * 64)}, bytes(4)), "at most 8"),
    "a huge shape": (raw({"a": entry(0, 4, [2**62, 2**62, 4])}, bytes(4)), "its shape needs"),
    "a shape that would overflow": (raw({"a": entry(0, 0, [2**62, 4])}), "its shape needs"),
    "a shape that is not its data": (raw({"a": entry(0, 8, [1])}, bytes(8)), "needs 4 bytes"),
    "cut off": (raw({"a": entry(0, 400, [100])}, bytes(399)), "cut off"),
    "something behind": (raw({"a": entry(0, 4, [1])}, bytes(5)), "belongs to none"),
    "a gap": (raw({"a": entry(4, 8, [1])}, bytes(8)), "leaves a gap"),
    "overlap": (
        raw({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), "overlaps with another"
    ),
    "twice the same data": (
        raw({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4)), "overlaps with another"
    ),
    "an offset beyond the data": (raw({"a": entry(0, 2**60, [2**58])}), "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_result_is_refused(root, result, case):
    content, message = REFUSED[case]
    result.write_bytes(content)
    with pytest.raises(VectorError) as refused:
        grade_report(root)
    assert message in str(refused.value)
    assert str(result) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(result))


def test_metadata_is_harmless(root, result):
    content = result.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"../../x": "y"}}
    result.write_bytes(raw(header, content[8 + length :]))
    assert grade_report(root).conforms


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_result_is_refused(root, result, kept):
    content = result.read_bytes()
    result.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(VectorError, match="cut off"):
        grade_report(root)


def test_a_giant_file_is_refused_unread(root, result, monkeypatch):
    with open(result, "wb") as file:
        file.truncate(2**40)  # a terabyte of nothing
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(VectorError, match=r"expected at most .* bytes, found 1099511627776"):
        read_file(result)


def test_a_giant_result_is_refused(root, result):
    with open(result, "wb") as file:
        file.truncate(MAX_FILE)  # allowed for some file, not for this one
    with pytest.raises(VectorError, match="expected at most"):
        grade_report(root)


def test_a_file_that_grows_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    small = os.stat(tmp_path / "file")
    monkeypatch.setattr(
        "vitspec.testing.vectors.format._require_file", lambda *_: small.st_size
    )  # it was small when it was looked at
    with pytest.raises(VectorError, match="grows"):
        read_file(path, limit=99)


NO_FILE = {
    "link": (lambda path, outside: path.symlink_to(outside), "a symbolic link"),
    "link to nowhere": (lambda path, outside: path.symlink_to("nowhere"), "a symbolic link"),
    "pipe": (lambda path, outside: os.mkfifo(path), "a pipe"),
    "directory": (lambda path, outside: path.mkdir(), "a directory"),
    "device": (lambda path, outside: path.symlink_to("/dev/zero"), "a symbolic link"),
}


@pytest.mark.parametrize("name", ["result.safetensors", "rejected.txt", "case.json"])
@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file_is_not_opened(root, tmp_path, answered, name, kind):
    make, found = NO_FILE[kind]
    path = root / MODEL / name
    path.unlink(missing_ok=True)
    make(path, answered / MODEL / "result.safetensors")
    with pytest.raises(VectorError, match=f"{name}: expected a regular file, found {found}"):
        grade_report(root)


@pytest.mark.parametrize("make", [NO_FILE["link"][0], NO_FILE["pipe"][0]])
def test_a_file_that_is_exchanged_while_it_is_looked_at_is_refused(tmp_path, monkeypatch, make):
    plain, path = tmp_path / "plain", tmp_path / "path"
    plain.write_bytes(b"")
    looked_at = os.lstat(plain)
    make(path, plain)
    monkeypatch.setattr(os, "lstat", lambda _: looked_at)  # it was a plain file then
    with pytest.raises(VectorError, match=r"expected a (regular )?file, found"):
        read_file(path)


def test_a_device_is_not_opened(monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(VectorError, match="found a device"):
        read_file(folder.Path("/dev/zero"))


def test_a_case_that_leads_elsewhere_is_refused(root, answered):
    shutil.rmtree(root / MODEL)
    (root / MODEL).symlink_to(answered / MODEL)
    with pytest.raises(VectorError, match="found a symbolic link"):
        grade_report(root)


@pytest.mark.parametrize("name", ["case.json", "inputs.safetensors"])
def test_an_altered_prompt_is_refused(root, name):
    path = root / MODEL / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(VectorError, match=f"{name}: is not what this version .* exports"):
        grade_report(root)


@pytest.mark.parametrize("name", ["case.json", "inputs.safetensors"])
def test_a_missing_prompt_is_refused(root, name):
    (root / MODEL / name).unlink()
    with pytest.raises(VectorError, match="expected a file, found nothing"):
        grade_report(root)


def test_a_missing_case_is_refused(root):
    shutil.rmtree(root / MODEL)
    with pytest.raises(VectorError, match="expected a folder, found nothing"):
        grade_report(root)


INDEXES = {
    "deep": (b"[" * 200_000, "nests too deeply"),
    "no UTF-8": (b"\xff\xfe", "expected JSON in UTF-8"),
    "no JSON": (b"{", "expected JSON"),
    "NaN": (b'{"schema": NaN}', "NaN is no JSON"),
    "a list": (b"[]", "expected the schema"),
    "another schema": (b'{"schema": "vitspec-vectors/1"}', "expected the schema"),
    "control characters": (b'{"schema": "\\u001b[2J"}', r"found '\x1b[2J'"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_damaged_index_is_refused(root, case):
    content, message = INDEXES[case]
    (root / "index.json").write_bytes(content)
    with pytest.raises(VectorError) as refused:
        grade_report(root)
    assert message in str(refused.value)


def test_paths_in_the_index_lead_nowhere(root):
    index = json.loads((root / "index.json").read_text())
    index["cases"] = ["../../outside", "/etc"]
    index["files"] = {"../../outside/case.json": {"sha256": "0" * 64, "size": 1}}
    (root / "index.json").write_text(json.dumps(index))
    assert grade_report(root).conforms  # what it says is not used


def test_truth_in_the_folder_is_not_believed(root, result):
    arrays = load_file(result)
    arrays["logits"] = arrays["logits"] * 2
    save(root, MODEL, arrays)
    truth = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    (root / MODEL / "outputs.safetensors").write_bytes(dump_safetensors(truth))
    assert results(root)[MODEL, "vector.forward"].status == "failed"


@pytest.mark.parametrize("text", [b"\xff\xfe", b"x" * 10_000])
def test_a_damaged_rejection_is_refused(root, text):
    (root / ILL_FORMED / "rejected.txt").write_bytes(text)
    with pytest.raises(VectorError, match=r"rejected\.txt"):
        grade_report(root)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(VectorError, match="expected a folder, found nothing"):
        grade_report(tmp_path / "nothing")
    with pytest.raises(VectorError, match=r"has no index\.json"):
        grade_report(tmp_path)
    with pytest.raises(VectorError, match="--dtype: expected one of float64"):
        grade_report(tmp_path, "float8")


def test_a_damaged_package_is_noticed(tmp_path, monkeypatch):
    data = shutil.copytree(folder.DATA, tmp_path / "v1")
    path = data / MODEL / "outputs.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(folder, "DATA", data)
    folder.load.cache_clear()
    try:
        with pytest.raises(VectorError, match="not as released"):
            folder.load(MODEL)
        with pytest.raises(VectorError, match="not as released"):
            verify()
        path.write_bytes((folder.Path(folder.__file__).parent / "data" / "v1" / MODEL /
                          "outputs.safetensors").read_bytes())  # fmt: skip
        (data / "more.json").write_text("{}")
        with pytest.raises(VectorError, match=r"more\.json: is no file of the vectors"):
            verify()
    finally:
        folder.load.cache_clear()


def test_json_of_any_bytes_is_a_value_or_an_error():
    rng = np.random.default_rng(0)
    seed = b'{"a": [1, 2.5, "x\\u0041", null], "b": {"c": true}}'
    for _ in range(300):
        content = bytearray(seed)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        try:
            parse_json(bytes(content), "somewhere")
        except VectorError:
            continue


def test_safetensors_of_any_bytes_are_arrays_or_an_error():
    rng = np.random.default_rng(0)
    seed = dump_safetensors({"a": np.ones((2, 3), np.float32), "b": np.ones(4)})
    for _ in range(2000):
        content = bytearray(seed)
        for _ in range(rng.integers(1, 3)):
            content[rng.integers(8 + seed[0])] = rng.integers(256)
        try:
            arrays, _ = parse_safetensors(bytes(content), "somewhere")
        except VectorError:
            continue
        assert sum(x.size for x in arrays.values()) <= len(seed)
