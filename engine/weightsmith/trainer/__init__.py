"""The Trainer, and the update pipeline beneath it."""

from weightsmith.trainer.trainer import Trainer

__all__ = ["Trainer"]
