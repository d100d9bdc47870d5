"""TensorBoard's event files, written and read: nothing else here imports TensorBoard."""

from weightsmith_plugins.tensorboard.sink import EventFile, TensorBoard

__all__ = ["EventFile", "TensorBoard"]
