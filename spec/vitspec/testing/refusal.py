"""Whether an implementation refuses what is ill-formed, and how."""

from __future__ import annotations

import warnings

import numpy as np

from vitspec.testing.adapter_errors import AdapterError, ProcessEndedError
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Point


def refusal(subject: Subject, point: Point) -> str | None:
    """How an implementation refuses a configuration; None if it accepts it.

    A refusal is a reason that `supports` returns, or an error that `forward` itself raises: not
    logits of a wrong shape, and no error of the kit's own.

    Args:
        subject: the implementation.
        point: an ill-formed configuration, and arrays of the shapes that it asks for.
    """
    try:
        if (reason := subject.why_unsupported(point.config)) is not None:
            return f"refused: supports says {reason}"
    except ProcessEndedError:  # a crash of the process is no refusal
        raise
    except AdapterError:
        pass  # an error of supports answers nothing: forward may
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a mean of nothing may warn before it is refused
            subject.forward(point)
    except ProcessEndedError:
        raise
    except AdapterError as error:
        return f"refused: forward raised {error.raised}" if error.raised else None
    return None
