"""Implementations that misbehave: none changes what it is judged by, none gets past the kit."""

import numpy as np
import pytest

from vitspec.testing import AdapterError, check
from vitspec.testing.arrays import CHUNK, same_bits
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Point, SpecImplementation

QUICK = {"cases": 2, "laws": 1, "interpolations": 0, "ill_formed": False}


class Good:
    name, version, spec, dtype = "good", "1", "vit", "float32"
    own = SpecImplementation("vit")

    def forward(self, config, params, images):
        return self.own.forward(config, params, images)["logits"]

    def vjp(self, config, params, images, cotangent):
        return self.own.vjp(config, params, images, cotangent)


def good(**methods):
    """A correct implementation but for these attributes."""
    return type("Bent", (Good,), methods)()


def refused(one, **settings):
    """The one line with which an implementation is refused, or the reasons of what did not run."""
    try:
        report = check(one, **QUICK | settings)
    except AdapterError as error:
        lines = [str(error)]
    else:
        assert report.exit_code == 3, report
        lines = [r.reason for r in report.results if r.status == "errored"]
    assert lines
    assert not any("\n" in line for line in lines)
    return lines[0]


# ---- what it is given is its own, and so is what it returned -------------------------------------


def writable(array):
    """The array without NumPy's flag, which binds neither PyTorch nor native code."""
    address = array.__array_interface__ | {"data": (array.ctypes.data, False)}
    return np.asarray(type("Memory", (), {"__array_interface__": address, "owner": array})())


def clipped(images, in_place):
    images = writable(images) if in_place else images.copy()
    return np.clip(images, 0, 1, out=images)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("method", ["forward", "vjp"])
def test_images_that_are_clipped_are_another_function_in_place_or_not(in_place, method):
    """In place it changed the kit's own array, of which the truth was computed afterwards."""

    def forward(self, config, params, images):
        return Good.forward(self, config, params, clipped(images, in_place))

    def vjp(self, config, params, images, cotangent):
        return Good.vjp(self, config, params, clipped(images, in_place), cotangent)

    one = good(**{method: locals()[method]})
    if in_place:
        assert f"good.{method} writes into its argument images" in refused(one)
    else:
        assert check(one, **QUICK).exit_code == 1


@pytest.mark.parametrize("which", ["cotangent", "head.bias", "encoder.layers.0.mha.wq"])
def test_whatever_is_written_into_is_named(which):
    def vjp(self, config, params, images, cotangent):
        found = Good.vjp(self, config, params, images, cotangent)
        array = writable(cotangent if which == "cotangent" else params[which])
        array.reshape(-1)[-1] = np.nextafter(array.reshape(-1)[-1], np.float32(9))
        return found

    assert f"writes into its argument {which};" in refused(good(vjp=vjp))


def test_two_arrays_are_compared_bit_for_bit_to_their_ends():
    """NaN equals itself, zeros of two signs differ, and so does what the last part has."""
    a = np.full(CHUNK // 4 + 3, np.nan, np.float32)
    b = a.copy()
    assert same_bits(a, b)
    b[-1] = 0
    assert not same_bits(a, b)
    assert not same_bits(np.zeros(3), -np.zeros(3))
    assert same_bits(np.zeros((2, 3)).T, np.zeros((3, 2)))


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_one_buffer_for_all_results_is_harmless_and_hides_nothing(noise):
    """The kit kept the buffer: two runs were compared after the second had overwritten both."""
    buffers, rng = {}, np.random.default_rng(0)

    def forward(self, config, params, images):
        logits = Good.forward(self, config, params, images)
        logits = logits * (1 + noise * rng.standard_normal(logits.shape)).astype(np.float32)
        buffer = buffers.setdefault(logits.shape, np.empty_like(logits))
        buffer[...] = logits
        return buffer

    report = check(good(forward=forward), **QUICK)
    failed = {r.check for r in report.results if r.status == "failed"}
    assert failed == ({"determinism"} if noise else set())


def test_gradients_in_one_buffer_or_lazy_or_of_a_subclass_that_lies_are_copied():
    buffers = {}

    class Lies(np.ndarray):
        def __eq__(self, other):
            return True

        def __array_ufunc__(self, *args, **kwargs):
            return 0.0

    class Lazy:
        def __init__(self, make):
            self.make = make

        def __array__(self, dtype=None, copy=None):
            return self.make()

    def vjp(self, config, params, images, cotangent):
        d_params, d_images = Good.vjp(self, config, params, images, cotangent)
        for name, d in d_params.items():
            buffers.setdefault((name, d.shape), np.empty_like(d))[...] = d
        owned = {name: buffers[name, d.shape].view(Lies) for name, d in d_params.items()}
        return owned, Lazy(lambda: d_images)

    assert check(good(vjp=vjp), **QUICK).exit_code == 0
    found = Subject(good(vjp=vjp)).vjp(small_point())
    assert {type(array) for array in found.values()} == {np.ndarray}
    bits = {name: array.tobytes() for name, array in found.items()}
    for buffer in buffers.values():
        buffer[...] = 7
    assert bits == {name: array.tobytes() for name, array in found.items()}


def small_point():
    from vitspec.testing.families import FAMILIES

    family = FAMILIES["vit"]
    case = family.smoke_case(family.smoke_configs[0])
    return Point.of(case).rounded(Subject(Good()).precision)


def test_a_second_run_with_nan_is_not_the_same_again():
    runs = iter(range(100))

    def forward(self, config, params, images):
        logits = Good.forward(self, config, params, images)
        return logits * np.float32(np.nan) if next(runs) == 1 else logits

    assert "something else on every run" in refused(good(forward=forward))


# ---- whatever it raises, wherever: one line ------------------------------------------------------


class Unprintable(Exception):  # noqa: N818
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, *args):
        super().__init__("with a", lambda: None)

    def __reduce__(self):
        raise TypeError("no")


class NoException(BaseException):
    pass


RAISED = {
    "exception": lambda: RuntimeError("two\nlines"),
    "exit": lambda: SystemExit(0),
    "generator-exit": GeneratorExit,
    "stop": StopIteration,
    "base": lambda: NoException("x"),
    "unprintable": Unprintable,
    "unpicklable": Unpicklable,
    "skip": lambda: pytest.skip.Exception("a test framework's"),
    "memory": MemoryError,
    "recursion": RecursionError,
    "group": lambda: BaseExceptionGroup("several", [SystemExit(0)]),
}
PLACES = [
    "name", "version", "spec", "dtype", "forward", "vjp", "supports", "closest",
    "the call of forward", "the call of vjp", "the call of supports", "the call of closest",
]  # fmt: skip


def raises_at(place, make):
    def fails(self, *args):
        raise make()

    method = place.removeprefix("the call of ")
    return good(**{method: fails if method != place else property(fails)})


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", RAISED)
def test_whatever_is_raised_is_one_line(what, place):
    line = refused(raises_at(place, RAISED[what]))
    assert type(RAISED[what]()).__name__ in line
    assert place.removeprefix("the call of ") in line


# ---- objects of every wrong kind -----------------------------------------------------------------


class Unreadable:
    def __array__(self, dtype=None, copy=None):
        raise Unprintable


WRONG = {
    "None": lambda x: None,
    "text": lambda x: "logits",
    "a list of texts": lambda x: ["a", "b"],
    "a number": lambda x: 7.0,
    "an empty tuple": lambda x: (),
    "a set": lambda x: {1.0},
    "a class": lambda x: np.ndarray,
    "a generator": lambda x: (row for row in x),
    "ragged rows": lambda x: [[1.0], [1.0, 2.0]],
    "objects": lambda x: x.astype(object),
    "masked": lambda x: np.ma.masked_array(x, x > 0),
    "complex": lambda x: x.astype(np.complex64),
    "whole numbers": lambda x: x.astype(np.int64),
    "truth values": lambda x: x > 0,
    "records": lambda x: x.astype([("float", np.float32)]),
    "texts": lambda x: x.astype(str),
    "dates": lambda x: x.astype("int64").astype("M8[s]"),
    "no dimension": lambda x: np.float32(1),
    "another shape": lambda x: x[None],
    "unreadable": lambda x: Unreadable(),
    "an unprintable name": lambda x: {Unreadable: x, Unprintable(): x},
    "an empty mapping": lambda x: {},
    "a tap of objects": lambda x: {"logits": x, "tokens": x.astype(object)},
    "a tap of text": lambda x: {"logits": x, "tokens": "many"},
    "a masked tap": lambda x: {"logits": x, "tokens": np.ma.masked_array(x)},
}


@pytest.mark.parametrize("what", WRONG)
def test_logits_of_a_wrong_kind_are_refused_in_a_line(what):
    def forward(self, config, params, images):
        return WRONG[what](Good.forward(self, config, params, images))

    refused(good(forward=forward))


GRADIENTS = {
    "None": lambda d, x: None,
    "one": lambda d, x: x,
    "three": lambda d, x: (d, x, x),
    "swapped": lambda d, x: (x, d),
    "a list": lambda d, x: (list(d.values()), x),
    "no images": lambda d, x: (d, None),
    "no names": lambda d, x: ({}, x),
    "numbers for names": lambda d, x: (dict(enumerate(d.values())), x),
}
GRADIENTS |= {
    f"{kind} in one": lambda d, x, bend=bend: (d | {"head.bias": bend(d["head.bias"])}, x)
    for kind, bend in WRONG.items()
    if "tap" not in kind
}


@pytest.mark.parametrize("what", GRADIENTS)
def test_gradients_of_a_wrong_kind_are_refused_in_a_line(what):
    def vjp(self, config, params, images, cotangent):
        return GRADIENTS[what](*Good.vjp(self, config, params, images, cotangent))

    refused(good(vjp=vjp))


@pytest.mark.parametrize("value", [None, 7, "x", [], Unprintable(), Unreadable, {"vit"}, b"vit"])
@pytest.mark.parametrize("attribute", ["name", "spec", "dtype", "forward"])
def test_attributes_of_a_wrong_kind_are_refused_in_a_line(attribute, value):
    if attribute == "name" and isinstance(value, str):
        assert check(good(name=value), **QUICK).name == value
    elif attribute == "forward" and callable(value):
        refused(good(forward=staticmethod(value)))
    else:
        assert attribute in refused(good(**{attribute: value}))


@pytest.mark.parametrize("value", [7, True, "x", [], Unprintable(), np.zeros(3)])
@pytest.mark.parametrize("method", ["supports", "closest"])
def test_answers_of_a_wrong_kind_are_refused_in_a_line(method, value):
    line = refused(good(**{method: lambda self, config: value}))
    assert method in line or "supports none" in line


def test_what_it_says_of_itself_is_read_once():
    """A name that changes, or a spec, would be of one implementation here and of another there."""
    answers = {"name": iter("abcdefgh"), "spec": iter(["vit", *["vit-cls"] * 9])}
    one = good(**{n: property(lambda self, n=n: next(answers[n])) for n in answers})
    report = check(one, **QUICK)
    assert (report.name, report.spec, report.exit_code) == ("a", "vit", 0)


def test_a_configuration_that_is_changed_is_its_own():
    """A frozen dataclass can be written to all the same."""

    def supports(self, config):
        object.__setattr__(config, "num_layers", 0)

    def forward(self, config, params, images):
        found = Good.forward(self, config, params, images)
        object.__setattr__(config, "num_classes", 1)
        return found

    assert check(good(supports=supports, forward=forward), **QUICK).exit_code == 0
