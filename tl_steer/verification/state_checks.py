"""Checks of the model as it stands: nobody's hooks in it, no training, and left as it was."""

from .check import Check, Finding
from .context import Subject
from .model_state import differing, listed, settings, weights


def no_hooks(subject: Subject) -> Finding:
    """Hooks that were there before any check."""
    places = subject.before.hooks
    return Finding(sum(map(len, places.values())), listed(list(places)))


def not_training(subject: Subject) -> Finding:
    """Modules in training mode."""
    names = [name for name, module in subject.model.named_modules() if module.training]
    return Finding(len(names), "call model.eval(): " + listed([name or "the model" for name in names]))


def no_gradients(subject: Subject) -> Finding:
    """Weights that want gradients."""
    names = [name for name, weight in subject.model.named_parameters() if weight.requires_grad]
    return Finding(len(names), "call model.requires_grad_(False): " + listed(names))


def same_weights(subject: Subject) -> Finding:
    """Weights that are not what they were before the checks."""
    return differing(subject.before.weights, weights(subject.model))


def same_settings(subject: Subject) -> Finding:
    """Settings of the model, its config or its tokenizer that are not what they were before the checks."""
    return differing(subject.before.settings, settings(subject.model))


FIRST = (
    Check(
        "no hooks were left behind",
        "hooks",
        "Nothing is hooked into the model before we begin. A forgotten hook changes every number, the "
        "unsteered ones too: model.reset_hooks(), or a fresh model.",
        no_hooks,
    ),
    Check(
        "evaluation mode",
        "modules",
        "No module trains. Where one does, dropout may be on, and no two runs are alike.",
        not_training,
    ),
    Check(
        "gradients are off",
        "weights",
        "No weight wants gradients. Where one does, numbers stay right, but passes inside a bare `with "
        "steer(…)` keep every activation in memory.",
        no_gradients,
    ),
)
LAST = (
    Check(
        "weights are unchanged",
        "weights",
        "After all of this, every weight is what it was. Where not, something writes into the model, and "
        "results depend on what ran before.",
        same_weights,
    ),
    Check(
        "settings are unchanged",
        "settings",
        "After all of this, the model's modes, its config and its tokenizer are what they were.",
        same_settings,
    ),
)
