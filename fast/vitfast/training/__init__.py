"""Training: one step as one program (`steps`), and all that makes a run of steps."""

from vitfast.training.steps import Loss, Step, cross_entropy, logits_of, make_train_step

__all__ = ["Loss", "Step", "cross_entropy", "logits_of", "make_train_step"]
