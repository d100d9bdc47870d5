"""The exceptions of the engine. All derive from :class:`WeightsmithError`, but for the one that ends a process."""

import signal
from collections.abc import Sequence
from pathlib import Path


class WeightsmithError(Exception):
    """Base of everything that the engine raises on its own account."""


class PluginDefinitionError(WeightsmithError, TypeError):
    """A plugin class is written in a way that could not work; raised when the class is made."""


class ConfigurationError(WeightsmithError, ValueError):
    """A setting cannot work; raised before the first batch."""


class RecipeError(ConfigurationError):
    """What is wrong with a recipe, with file and line: everything that was found, a line each.

    Attributes:
        problems: the lines.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class SelectionError(ConfigurationError):
    """``where=`` matches nothing, or is no selector."""


class UnsupportedWeightError(ConfigurationError):
    """A plugin selects a weight on which it cannot act correctly."""


class ConflictError(ConfigurationError):
    """Two plugins, or two optimizers, claim one weight."""


class PluginContractError(WeightsmithError, RuntimeError):
    """A plugin returned, or wrote, what its kind does not allow; raised while it runs."""


class CheckpointError(WeightsmithError, RuntimeError):
    """A checkpoint cannot be written, or none can be found."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written: a bit flipped, a file was cut, emptied, swapped or taken away."""


class NonFiniteError(WeightsmithError, ArithmeticError):
    """A loss, a gradient or a weight is infinite or no number; the message names the update and the first weight."""


class ReplicaDriftError(WeightsmithError, RuntimeError):
    """Processes that should hold copies of a weight hold different ones; the message names the first weight."""


class GoBack(BaseException):
    """Inside the engine: the run is to go back to its last good checkpoint."""


class RunStopped(SystemExit):
    """A signal stopped the run, which is saved. Ends the process with the exit code that shells give the signal, 143
    for SIGTERM and 130 for SIGINT.

    Attributes:
        signal: which.
        path: the checkpoint.
    """

    def __init__(self, number: signal.Signals, path: Path) -> None:
        super().__init__(128 + number)
        self.signal = number
        self.path = path

    def __str__(self) -> str:
        return f"{self.signal.name} stopped the run, which is saved in {self.path}"
