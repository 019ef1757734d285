"""Single checks of an implementation at one point, as the suites make them."""

from vitspec.testing.implementations import Subject
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES
from vitspec.testing.suites.suite import against_the_truth
from vitspec.testing.trial import Trial, case_trial


def trial_at(implementation, case, dtype=None):
    """The trial of a case."""
    return case_trial(Subject(implementation, dtype), case)


def default_trial(implementation, dtype, index, suite="case", **settings):
    """The trial of a small case of `vitspec check`, by its number."""
    return SUITES[suite].trial(Subject(implementation, dtype), Settings(**settings), index)


def same_point(trial, implementation):
    """The same trial of another implementation; the truth and the noise are not computed again."""
    other = Trial(Subject(implementation, trial.precision.name), trial.point, trial.rng)
    other.reference = trial.reference
    return other


def check_forward(trial):
    """The logits against the specification's."""
    return next(against_the_truth(trial, Settings(only="forward")))


def check_vjp(trial):
    """The gradients against the specification's."""
    return next(against_the_truth(trial, Settings(only="vjp")))


def results_of(suite, implementation, index=None, **settings):
    """The results of one unit of a suite."""
    settings = Settings(**settings)
    return list(SUITES[suite].run(Subject(implementation, settings.dtype), settings, index))
