"""Attention maps: the mathematics against loops, and the drawing."""

import os

import numpy as np
import pytest
from PIL import Image

from support.fresh import fresh_rng
from vitfast.attention_maps import (
    VIRIDIS,
    attention_rollout,
    check_weights,
    cls_attention,
    cls_rollout,
    colours,
    draw_attention,
    save_picture,
)
from vitspec.errors import InvalidArray

RNG = fresh_rng()


def weights(layers, heads, tokens):
    scores = np.exp(RNG.normal(size=(layers, heads, tokens, tokens)))
    return scores / scores.sum(-1, keepdims=True)


def paths(mixed, token):
    """All ways through the layers, by recursion: what reaches `token` of each token below."""
    if len(mixed) == 0:
        return np.eye(7)[token]
    return sum(mixed[-1][token, k] * paths(mixed[:-1], k) for k in range(len(mixed[-1])))


@pytest.mark.parametrize("prefix", [1, 3])
def test_the_cls_row_of_a_layer_is_averaged_over_heads(prefix):
    A = weights(4, 3, 6 + prefix)
    for layer in (0, 2, -1):
        found = cls_attention(A, (2, 3), layer, prefix)
        for row in range(2):
            for column in range(3):
                token = prefix + 3 * row + column
                expected = sum(A[layer, head, 0, token] for head in range(3)) / 3
                assert found[row, column] == pytest.approx(expected, rel=1e-14)


def test_rollout_sums_over_all_ways_through_the_layers():
    A = weights(3, 2, 7)
    mixed = [(layer[0] + layer[1]) / 4 + np.eye(7) / 2 for layer in A]
    found = attention_rollout(A)
    for token in range(7):
        np.testing.assert_allclose(found[token], paths(mixed, token), rtol=1e-13)
        np.testing.assert_allclose(attention_rollout(A, token), found[token], rtol=1e-13)
    np.testing.assert_allclose(cls_rollout(A, (2, 3)).ravel(), found[0, 1:], rtol=1e-13)
    np.testing.assert_allclose(cls_rollout(A, (1, 3), 4).ravel(), found[0, 4:], rtol=1e-13)


def test_rollout_of_what_attends_only_to_itself_is_the_identity():
    A = np.broadcast_to(np.eye(5), (4, 2, 5, 5))
    np.testing.assert_array_equal(attention_rollout(A), np.eye(5))


def test_rollout_divides_rows_by_their_sums():
    A = weights(3, 2, 5)
    np.testing.assert_allclose(attention_rollout(A).sum(1), 1, rtol=1e-14)
    A[1, :, 3] = 0  # a query that may attend to nothing
    np.testing.assert_allclose(attention_rollout(A).sum(1), 1, rtol=1e-14)
    assert cls_rollout(A, (2, 2)).shape == (2, 2)


def test_rollout_takes_the_layers_in_their_order():
    A = weights(2, 1, 5)
    first, second = ((layer[0] + np.eye(5)) / 2 for layer in A)
    np.testing.assert_allclose(attention_rollout(A), second @ first, rtol=1e-13)
    assert np.abs(second @ first - first @ second).max() > 1e-3


def test_what_are_no_weights():
    A = weights(2, 3, 7)
    for bad in (A[0], A[:, :, :6], A[:, :, :6, :6], A[None], A[:0], A[:, :0]):
        with pytest.raises(InvalidArray, match=r"expected \(layers, heads, 7, 7\) for 2 x 3"):
            cls_attention(bad, (2, 3))
    for bad in (A - 0.2, 2 * A, np.log(A), A * np.nan):
        with pytest.raises(InvalidArray, match="give weights, not scores"):
            cls_rollout(bad, (2, 3))
    for layer in (2, -3):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            cls_attention(A, (2, 3), layer)
    with pytest.raises(ValueError, match="prefix_tokens: expected at least 1"):
        check_weights(A, (1, 7), 0)


def test_rounded_weights_are_taken():
    A = weights(2, 3, 7).astype(np.float16)
    assert cls_attention(A, (2, 3)).dtype == np.float64


def lightness(rgb):
    """CIE L* of sRGB."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return 116 * np.where(luminance > 0.008856, np.cbrt(luminance), 7.787 * luminance + 4 / 29) - 16


def test_the_colours_grow_evenly_lighter():
    found = colours(np.linspace(0, 1, 256))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[::17], VIRIDIS)
    steps = np.diff(lightness(np.array(VIRIDIS) / 255))
    assert (steps > 0.7 * steps.mean()).all()
    assert (steps < 1.4 * steps.mean()).all()


@pytest.mark.parametrize("size", [(224, 224), (300, 150), (37, 90), (3, 2)])
def test_a_drawing_has_the_size_of_the_picture(size):
    picture = Image.new("L", size, 128)
    drawn = draw_attention(picture, RNG.random((4, 7)), "the last layer")
    assert (drawn.size, drawn.mode) == (size, "RGB")
    array = np.asarray(picture.convert("RGB"))
    assert draw_attention(array, RNG.random((4, 7))).size == size


def test_the_map_is_where_its_patches_are():
    attention = np.zeros((4, 8))
    attention[1, 6] = 1
    picture = RNG.integers(0, 256, (120, 240, 3), np.uint8)
    drawn = np.asarray(draw_attention(picture, attention, opacity=1)).astype(int)
    # The centre of the patch has the last colour, patches that do not touch it the first.
    np.testing.assert_allclose(drawn[45, 195], VIRIDIS[-1], atol=25)
    for y, x in ((10, 20), (80, 30), (45, 100), (100, 195)):
        np.testing.assert_array_equal(drawn[y, x], VIRIDIS[0])
    # Halfway to a neighbour's centre, halfway through the scale.
    np.testing.assert_allclose(drawn[45, 180], colours(0.5), atol=12)


def test_opacity_and_a_map_of_one_value():
    picture = RNG.integers(0, 256, (40, 60, 3), np.uint8)
    flat = np.full((2, 3), 0.25)
    np.testing.assert_array_equal(draw_attention(picture, flat, opacity=0), picture)
    drawn = draw_attention(picture, flat, opacity=0.5)
    np.testing.assert_allclose(drawn, (picture.astype(int) + VIRIDIS[0]) / 2, atol=1)
    for bad in (-0.1, 1.5):
        with pytest.raises(ValueError, match="opacity"):
            draw_attention(picture, flat, opacity=bad)
    for bad in (np.zeros(3), np.zeros((0, 3)), np.array([[np.nan]])):
        with pytest.raises(InvalidArray, match="attention"):
            draw_attention(picture, bad)


def test_the_legend_is_below_and_only_where_it_fits():
    attention = np.array([[0.0, 1.0]])
    plain = np.zeros((200, 400, 3), np.uint8)
    titled, other = (
        np.asarray(draw_attention(plain, attention, title, opacity=0)) for title in ("layer 3", "")
    )
    assert (titled[:184] == 0).all()
    assert (titled[184:] != 0).any()
    assert (titled != other).any()
    assert (np.asarray(draw_attention(plain[:, :60], attention, opacity=0)) == 0).all()
    assert (np.asarray(draw_attention(plain, attention, "x" * 200, opacity=0)) == 0).all()


def test_the_file_is_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    picture = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8))
    save_picture(picture, path)
    with Image.open(path) as written:
        np.testing.assert_array_equal(written, picture)

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        save_picture(picture.rotate(180), path)
    assert [one.name for one in tmp_path.iterdir()] == ["map.png"]
    with Image.open(path) as written:
        np.testing.assert_array_equal(written, picture)
