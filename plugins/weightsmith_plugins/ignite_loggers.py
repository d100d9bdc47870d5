"""Any of Ignite's loggers as a sink."""

from __future__ import annotations

import sys
from typing import Any

from ignite.engine.events import RemovableEventHandle
from ignite.handlers.base_logger import BaseLogger
from torch import Tensor
from weightsmith import ConfigurationError, Trainer, WeightEvents

__all__ = ["log_with_ignite"]


def log_with_ignite(trainer: Trainer, logger: BaseLogger, *, tag: str = "weightsmith") -> RemovableEventHandle:
    """Hand every number that is measured to one of Ignite's loggers, such as ``WandBLogger`` or ``MLflowLogger``, by
    its own output handler; distributions and pictures are left out, for which these have no common form.

    Args:
        trainer: whose measurements.
        logger: made and configured as Ignite has it; closed by you.
        tag: what the names of the numbers begin with.

    Returns:
        Ignite's handle; its ``remove()`` ends it.

    Raises:
        ConfigurationError: the logger is none of Ignite's, or one without an output handler, such as ``ProgressBar``.
    """
    if not isinstance(logger, BaseLogger):
        raise ConfigurationError(f"log_with_ignite takes one of Ignite's loggers, not a {type(logger).__name__}")

    def numbers(_: Any) -> dict[str, float]:
        measurements = trainer.state.measurements
        values = {} if measurements is None else measurements.values
        return {tag: float(v) for tag, v in values.items() if isinstance(v, (Tensor, float, int))}

    def step(*_: Any) -> int:
        return 0 if trainer.state.measurements is None else trainer.state.measurements.step

    # As logger.attach_output_handler, which knows no events but Ignite's own.
    handler = _output_handler(logger)(tag, output_transform=numbers, global_step_transform=step)
    handle: RemovableEventHandle = trainer.add_event_handler(
        WeightEvents.MEASURED, handler, logger, WeightEvents.MEASURED
    )
    return handle


def _output_handler(logger: BaseLogger) -> Any:
    """The class that stands beside the logger's own in Ignite, which writes numbers."""
    for cls in type(logger).__mro__:
        if hasattr(sys.modules[cls.__module__], "OutputHandler"):
            return sys.modules[cls.__module__].OutputHandler
    raise ConfigurationError(f"log_with_ignite: {type(logger).__name__} has no output handler, which writes numbers")
