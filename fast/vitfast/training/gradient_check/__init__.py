"""A verified training step: its gradient, held against the specification while training runs.

    check = GradientCheck(config, objective)
    report = check.check(step, model, batch, key)      # raises GradientDeparts
    print(report.line())

`examples` takes a few images out of a batch, with all that the step draws for them; `reference`
has the specification's gradient of their loss and what the precision may cost; `kinks` keeps clear
of points without a derivative; `naming` says what a departing gradient looks like; `report` is what
one learns of it; `checking` puts them together. `docs/checked-training.md` says what it covers.
"""

from vitfast.training.gradient_check.checking import GradientCheck
from vitfast.training.gradient_check.report import GradientDeparts, GradientReport

__all__ = ["GradientCheck", "GradientDeparts", "GradientReport"]
