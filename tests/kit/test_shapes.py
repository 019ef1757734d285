"""Every shape by formula is the shape of what the specification really computes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from vitspec import InvalidParameters, NotWellFormed, ViTConfig, vit_large_patch16_config
from vitspec.bench import flops, products
from vitspec.cli import app
from vitspec.commands.shapes import shapes_json, shapes_table
from vitspec.config_text import parse_config
from vitspec.geometry import pad, sliding_window_out_dim
from vitspec.layers.attention import scaled_dot_product_attention
from vitspec.layers.conv2d import conv2d, window_rows
from vitspec.models.tokens import grid_to_tokens
from vitspec.shapes import (
    LAYER,
    Model,
    forward_flops,
    letters,
    parameter_count,
    parameter_rows,
    remarks,
    shapes,
)
from vitspec.testing.strategies import cases, edge_cases, edges_of

any_case = cases(degenerate=True) | edge_cases()
batches = st.none() | st.integers(0, 3)


def model_of(case):
    return Model(case.config, case.spec, *case.image_shape)


def leaves(record, prefix):
    """The arrays of a trace's record by path, without the layer's input."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        elif field.name != "input":
            yield prefix + field.name, value


def computed(case):
    """The arrays that the specification makes of a case, by name, in order."""
    model, image = case.model(), case.image()
    trace = model.trace(image)
    padded = pad(image, case.config.padding)
    grid = conv2d(model.patch_embed, image)
    tokens = grid_to_tokens(grid)
    arrays = {"image": image, "padded": padded, "windows": window_rows(model.patch_embed, padded)}
    arrays |= {"grid": grid, "tokens": tokens}
    if case.spec == "vit-cls":
        arrays["sequence"] = model._sequence(tokens)
    arrays["embedded"] = trace.embedded
    for i, layer in enumerate(trace.layers):
        for name, array in leaves(layer, LAYER.format(i=i)):
            if name.endswith("mha.weights"):
                arrays[name.replace("weights", "scores")] = layer.mha.q @ layer.mha.k.swapaxes(1, 2)
            arrays[name] = array
    return arrays | {"encoded": trace.encoded, "pooled": trace.pooled, "logits": trace.logits}


@given(case=any_case, batch=batches)
@settings(max_examples=100)
def test_every_shape_is_that_of_a_real_run(case, batch):
    real = [(name, array.shape) for name, array in computed(case).items()]
    rows = shapes(*model_of(case), every_layer=True)
    assert [(row.name, row.shape) for row in rows] == real
    if batch is not None:
        batched = shapes(*model_of(case), batch, every_layer=True)
        assert [(row.name, row.shape[1:]) for row in batched] == real
        assert {row.shape[0] for row in batched} == {batch}


@given(case=any_case)
@settings(max_examples=60)
def test_every_parameter_s_shape_is_that_of_a_real_model(case):
    flat = case.model().to_flat()
    rows = parameter_rows(*model_of(case), every_layer=True)
    assert [(r.name, r.shape) for r in rows] == [(n, leaf.shape) for n, leaf in flat.items()]
    assert [r.size for r in rows] == [leaf.size for leaf in flat.values()]
    assert parameter_count(*model_of(case)) == sum(leaf.size for leaf in flat.values())


class Counting(np.ndarray):
    """An array that counts the operations of the matrix products that it is in."""

    flops = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(x) if isinstance(x, Counting) else x for x in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(np.asarray(x) for x in kwargs["out"])
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counting.flops += 2 * result.size * plain[0].shape[-1]
        return result.view(Counting) if isinstance(result, np.ndarray) else result


@given(case=any_case, batch=batches)
@settings(max_examples=50)
def test_the_operations_are_those_of_the_matrix_products_of_a_real_run(case, batch):
    model = case.model().map(lambda leaf: leaf.view(Counting))
    Counting.flops = 0
    model.forward(case.image().view(Counting))
    assert forward_flops(*model_of(case)) == Counting.flops
    if batch is not None:
        assert forward_flops(*model_of(case), batch) == batch * Counting.flops


def test_counting_sees_a_matrix_product_by_its_definition():
    Counting.flops = 0
    q = np.ones((5, 3)).view(Counting)
    scaled_dot_product_attention(q, q, q)
    assert Counting.flops == 2 * (5 * 3 * 5 + 5 * 5 * 3)


def test_a_vit_large_has_the_operations_that_bench_counts():
    model = Model(vit_large_patch16_config, "vit", 3, 384, 224)
    assert forward_flops(*model) == flops(products(vit_large_patch16_config, 3, 384, 224))


@given(case=any_case)
@settings(max_examples=60)
def test_one_layer_s_rows_stand_for_all_layers(case):
    model = model_of(case)
    for rows in (shapes, parameter_rows):
        every = rows(*model, every_layer=True)
        once = [row._replace(name=row.name.replace("{i}", "0")) for row in rows(*model)]
        others = tuple(LAYER.format(i=i) for i in range(1, case.config.num_layers))
        assert once == [row for row in every if not row.name.startswith(others or "-")]


@given(case=any_case)
@settings(max_examples=60)
def test_formulas_are_in_the_letters_that_are_explained(case):
    model = model_of(case)
    known = letters(*model, 2)
    for row in [*shapes(*model, 2), *parameter_rows(*model)]:
        assert len(row.formula.split(", ")) == len(row.shape)
        assert set(row.formula.replace(",", "").split()) <= known.keys()


# ---- remarks -----------------------------------------------------------------------------------


def covered_by_brute_force(extent, patch, config):
    out = sliding_window_out_dim(extent, patch, config.stride, config.padding)
    padded = {i * config.stride + tap for i in range(out) for tap in range(patch)}
    return len(padded & set(range(config.padding, config.padding + extent)))


@given(case=any_case)
@settings(max_examples=100)
def test_pixels_that_no_window_covers_are_counted(case):
    c, text = case.config, "\n".join(remarks(*model_of(case)))
    z = letters(*model_of(case))
    for extent, patch, axis in ((case.height, c.patch_h, "rows"), (case.width, c.patch_w, "col")):
        missing = extent - covered_by_brute_force(extent, patch, c)
        assert (f" {missing} of {extent} {axis}" in text) == (missing > 0 and z["T"] > 0)


REMARKED = {
    "no token": "no patch fits",
    "padding at least the patch": "wholly in the padding",
    "heads do not divide the width": "do not divide",
    "more heads than width": "more heads",
    "no layers": "no layers",
    "embed_dim 1": "D = 1",
    "one row": "one row",
}


@given(case=any_case)
@settings(max_examples=100)
def test_an_edge_is_remarked_on_and_only_then(case):
    text, edges = "\n".join(remarks(*model_of(case))), edges_of(case)
    for edge, words in REMARKED.items():
        at_edge = any(name.startswith(edge) for name in edges)
        if edge == "no token":
            at_edge = letters(*model_of(case))["T"] == 0
        if edge in ("embed_dim 1", "one row"):
            at_edge = at_edge and case.config.num_layers > 0
        assert (words in text) == at_edge, edge


# ---- output ------------------------------------------------------------------------------------


def printed(*model):
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(shapes_table(*model))
    return capture.get()


@given(case=any_case, batch=batches)
@settings(max_examples=30)
def test_the_table_fits_80_columns_and_has_every_row(case, batch):
    text = printed(*model_of(case), batch)
    assert max(map(len, text.splitlines())) <= 80
    for row in [*shapes(*model_of(case), batch), *parameter_rows(*model_of(case))]:
        cells = (row.name.removeprefix(LAYER), " x ".join(map(str, row.shape)), row.formula)
        assert any(all(f" {cell} " in line for cell in cells) for line in text.splitlines())


def test_the_table_of_a_huge_model_fits_80_columns():
    text = printed(*parse_config("large,height=1024,width=2048"), 1024)
    assert max(map(len, text.splitlines())) <= 80


def test_the_table_of_a_vit_base():
    lines = printed(*parse_config("base")).splitlines()
    assert lines[0] == "vit on 3 x 224 x 224, patches of 16 x 16, stride 16, padding 0"
    assert lines[1].startswith("T = 14 x 14 = 196, n = 196, D = 768, 12 heads of d = 64, I = 768")
    assert lines[-1] == "86,527,720 parameters; 34.9 GFLOP in the forward's matrix products"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert ["mha.q", "12 x 196 x 64", "heads, n, d", "by head"] in cells
    assert ["encoder.layers.{i}.", "", "", "12 times"] in cells


@given(case=any_case, batch=batches, every_layer=st.booleans())
@settings(max_examples=30)
def test_the_json_says_the_same(case, batch, every_layer):
    data = json.loads(json.dumps(shapes_json(*model_of(case), batch, every_layer=every_layer)))
    assert data["schema"] == "vitspec-shapes/1"
    assert ViTConfig(**data["config"]) == case.config
    assert data["image"] == case.size
    rows = shapes(*model_of(case), batch, every_layer=every_layer)
    assert [(r["name"], tuple(r["shape"])) for r in data["shapes"]] == [row[:2] for row in rows]
    assert sum(r["size"] * r["times"] for r in data["parameters"]) == data["parameter_count"]
    assert data["forward_flops"] == forward_flops(*model_of(case), batch)


# ---- refusals ----------------------------------------------------------------------------------

EVERYTHING = (shapes, parameter_rows, parameter_count, forward_flops, remarks, shapes_json)


@pytest.mark.parametrize("function", EVERYTHING)
def test_an_ill_formed_model_has_no_shapes(function):
    with pytest.raises(NotWellFormed, match=r"(?s)headCount_pos.*h_inC"):
        function(ViTConfig(head_count=0), "vit", 0, 224, 224)
    with pytest.raises(ValueError, match="expected one of vit, vit-cls, got 'ViT'"):
        function(ViTConfig(), "ViT", 3, 224, 224)
    with pytest.raises(InvalidParameters, match="at most 100,000 layers"):
        function(ViTConfig(num_layers=2**31 - 1), "vit", 3, 224, 224)


def test_a_batch_is_a_natural_number():
    with pytest.raises(NotWellFormed, match="nat: batch"):
        shapes(*parse_config("base"), -1)


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_shows_what_the_command_prints():
    page = Path(__file__).parents[2] / "docs" / "shape-testing.md"
    shown = page.read_text("utf-8").partition("```console\n$ vitspec ")[2].partition("```")[0]
    command, _, output = shown.partition("\n")
    run = CliRunner().invoke(app, command.split(), env={"COLUMNS": "80"})
    assert (run.exit_code, run.output) == (0, output)
