"""Every exception class of the package. Invalid arguments raise ValueError or TypeError."""

from typing import Any


class ModelUnavailableError(OSError):
    """A model's files are not on this machine and could not be downloaded; the message names the remedies."""


class ModelMismatchError(ValueError):
    """A vector, activations or a chat format of one model were passed together with another model."""


class EmptySelectionError(ValueError):
    """A position selects no token of some prompt."""


class NonFiniteError(ArithmeticError):
    """The residual stream became NaN or infinite; the message names operation, layer and prompt."""


class HookDidNotFireError(RuntimeError):
    """The hook of an operation was never reached, so the operation had no effect."""


class NoDirectionError(ValueError):
    """At some layers nothing distinguishes the two sides.

    Attributes:
        vectors: the `SteeringVectors` of all layers, with zeros at these layers.
    """

    def __init__(self, message: str, vectors: Any) -> None:
        super().__init__(message, vectors)
        self.vectors = vectors

    def __str__(self) -> str:
        return self.args[0]


class InUseError(OSError):
    """Another process is writing to the same file or folder."""


class LostWorkersError(RuntimeError):
    """Ray workers were lost so often that a chunk of conditions could not be computed."""


class JudgeError(RuntimeError):
    """A judge could not be reached; replies received before are in the cache."""


class UnusableResponseError(RuntimeError):
    """A server's response does not have the promised form; a retry may help."""


class CutOffError(RuntimeError):
    """A judge reached its token limit before it gave a verdict."""


class UnfinishedRunError(RuntimeError):
    """Every table was computed, but the report failed; the message says how to repeat the report alone."""


class DoesNotApplyError(Exception):
    """A check of `verify` does not apply to this model; the message says why, or which argument to pass."""


__all__ = [
    "EmptySelectionError", "HookDidNotFireError", "InUseError", "JudgeError", "LostWorkersError",
    "ModelMismatchError", "ModelUnavailableError", "NoDirectionError", "NonFiniteError",
    "UnfinishedRunError",
]  # fmt: skip
