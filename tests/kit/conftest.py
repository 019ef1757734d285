"""An implementation to grade: the specification itself, perhaps with a mistake."""

import jaxtyping
import pytest

from vitspec.testing.catalogue import deviation
from vitspec.testing.reference import SpecImplementation


@pytest.fixture(autouse=True, scope="module")
def shapes_unchecked():
    """No shapes are checked, as in `vitspec check`: half of the time of many small evaluations."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(params=["vit", "vit-cls"])
def spec_name(request):
    return request.param


@pytest.fixture
def implementation():
    def make(spec="vit", *mistakes, dtype=("float32", "float64")):
        return SpecImplementation(spec, dtype, [deviation(name) for name in mistakes])

    return make
