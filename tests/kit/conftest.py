"""An implementation to grade: the specification itself, perhaps with a mistake."""

from concurrent.futures import Future
from contextlib import contextmanager

import jaxtyping
import pytest

from vitspec.testing import Subject, processes
from vitspec.testing.catalogue import deviation
from vitspec.testing.finding import find
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


@pytest.fixture
def inline(monkeypatch):
    """The processes' work is done in this one: a process takes seconds to start."""

    class Here(Subject):
        why_ended = ""

        def taken_output(self):
            return ""

    class Pool:
        def submit(self, function, *arguments):
            future = Future()
            future.set_result(function(*arguments))
            return future

    @contextmanager
    def no_processes(workers):
        yield Pool()

    monkeypatch.setattr(processes, "worker_pool", no_processes)
    monkeypatch.setattr(processes, "_subject", lambda target, dtype, _: Here(find(target), dtype))
