"""What a check says: one result for each check and place, and the report of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from vitspec.testing.tolerance import Grade, worst

Status = Literal["passed", "failed", "xfailed", "xpassed", "skipped", "errored"]


@dataclass(frozen=True)
class Result:
    """One check at one place.

    Attributes:
        check: the check's permanent name, such as "vjp".
        place: where: "photograph", "case 17", "interpolation 3", "law 2", "vector edge-one-token";
            "" for the whole.
        status: passed; failed; xfailed (a declared deviation); xpassed (declared, yet it passed);
            skipped (not applicable, with the reason); errored (the implementation did not run).
        grades: the verdicts on single tensors, if the check grades any.
        reason: why it failed or was skipped, in a line.
        point: what was evaluated, in words.
    """

    check: str
    place: str
    status: Status
    grades: tuple[Grade, ...] = ()
    reason: str = ""
    point: str = ""

    @property
    def worst(self) -> Grade | None:
        """The verdict furthest over its bound."""
        return worst(self.grades) if self.grades else None

    @property
    def failures(self) -> tuple[Grade, ...]:
        """The verdicts that do not conform."""
        return tuple(g for g in self.grades if not g.conforms)

    def ids(self) -> list[str]:
        """What a declaration may name: "check.tensor" for each failing tensor, or "check"."""
        return [f"{self.check}.{g.tensor}" for g in self.failures] or [self.check]


def graded(check: str, place: str, grades: Iterable[Grade], point: str = "") -> Result:
    """The result of grading tensors."""
    grades = tuple(grades)
    passed = all(g.conforms for g in grades)
    return Result(check, place, "passed" if passed else "failed", grades, point=point)


@dataclass(repr=False)
class Report:
    """What was checked of one implementation, and how it went.

    Attributes:
        target: how the implementation was named.
        name, version, spec, dtype: what it says of itself, and the precision checked in.
        seed: what everything was drawn from.
        results: in the order in which they are shown.
        unmatched: globs of the adopter's declaration that matched nothing.
        output: what the implementation wrote to its standard output.
        seconds: how long it took.
    """

    target: str
    name: str
    version: str
    spec: str
    dtype: str
    seed: int
    results: list[Result] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    output: str = ""
    seconds: float = 0.0

    def __repr__(self) -> str:
        """One line, which pytest shows where an assertion about the report fails."""
        from vitspec.testing.report.words import summary

        return f"<Report: {summary(self)}>"

    def __str__(self) -> str:
        """The verdict, and the first failures with the commands that reproduce them."""
        from vitspec.testing.report.words import explain

        return explain(self)

    def sort(self) -> None:
        """Put the results in the order of their places and checks, whichever came first."""
        order = {"photograph": 0, "case": 1, "interpolation": 2, "law": 3, "vector": 4}

        def key(result: Result) -> tuple[int, str, int, str]:
            kind, _, index = result.place.partition(" ")
            number = int(index) if index.isdigit() else 0
            return order.get(kind, len(order)), kind, number, index

        self.results.sort(key=key)

    def count(self) -> Counter[str]:
        """How many results have each status."""
        return Counter(result.status for result in self.results)

    @property
    def exit_code(self) -> int:
        """0 conforms; 1 a mismatch or an unexpected pass; 3 the implementation could not be run.

        Nothing checked is 3 as well.
        """
        count = self.count()
        if count["failed"] or count["xpassed"] or self.unmatched:
            return 1
        return 3 if count["errored"] or not (count["passed"] or count["xfailed"]) else 0

    @property
    def conforms(self) -> bool:
        """Whether everything that was checked passed, or failed as declared."""
        return self.exit_code == 0

    @property
    def verdict(self) -> str:
        """The one sentence that may be quoted."""
        if self.exit_code == 1:
            return "does not conform"
        if self.exit_code == 3:
            return "could not be checked"
        of_gradients = ("vjp", "interpolation.vjp", "vector.vjp")
        differentiated = [r for r in self.results if r.check in of_gradients]
        has_vjp = any(r.status in ("passed", "xfailed") for r in differentiated)
        limits = [] if has_vjp else ["forward only"]
        if all(r.check.startswith("identity") for r in self.results):
            limits = ["identities only"]
        if declared := self.count()["xfailed"]:
            limits.append(f"{declared} declared deviation{'s' if declared > 1 else ''}")
        return "conforms, as tested" + (f" ({', '.join(limits)})" if limits else "")

    def reproduce(self, result: Result) -> str:
        """The command that runs one result again."""
        command = f"vitspec check {quoted(self.target)} --dtype {self.dtype} --seed {self.seed}"
        kind, _, index = result.place.partition(" ")
        only = "" if result.check == "run" else f" --only {result.check}"
        if kind == "photograph":
            others = only or " --interpolations 0"  # of them no check has this name
            return f"{command}{others} --cases 0 --laws 0 --no-vectors"
        if kind in ("case", "interpolation", "law"):
            return f"{command}{only} --{kind} {index}"
        if kind == "identities":
            return f"{command}{only} --identities"
        if kind == "vector":
            return f"{command}{only} --vector {index}"
        return command + only


def quoted(target: str) -> str:
    """The target as a shell word."""
    import shlex

    return shlex.quote(target)


def environment() -> dict[str, Any]:
    """The versions that the figures were made with."""
    import platform
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("numpy", "jax", "jaxlib", "flax", "tokamax", "torch"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}
