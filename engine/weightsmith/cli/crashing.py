"""What a crash of a run comes to in a few lines: what was raised, in which module, and where in the user's own code."""

from __future__ import annotations

import contextlib
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import nn

from weightsmith.distributed import is_distributed, launched_rank
from weightsmith.errors import WeightsmithError
from weightsmith.trainer import Trainer

__all__ = ["Crash", "crash_of", "explaining"]

_FOREIGN = (*(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")), Path(__file__).parents[1])
"""Folders of code that is not the user's."""


@dataclass(frozen=True)
class Crash:
    """What an exception ended a run with, on this process.

    Attributes:
        lines: what it was, in which module and where in the user's own code, as far as that can be told.
        run_dir: the run's folder, if it has one.
    """

    lines: list[str]
    run_dir: Path | None

    def write(self, error: Exception) -> Path | None:
        """The file in the run's folder to which the whole traceback was written; ``None`` if it could not be."""
        if self.run_dir is None:
            return None
        own = launched_rank()
        path = self.run_dir / (f"traceback_{own}.txt" if own else "traceback.txt")
        try:
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError:
            return None
        return path


@contextlib.contextmanager
def explaining(trainer: Trainer) -> Iterator[None]:
    """Remember of an exception of somebody else's code, which the block raises, what it comes to."""
    try:
        yield
    except WeightsmithError:
        raise
    except Exception as error:
        found = [*_lost(error), f"{type(error).__qualname__}: {error}", *_module(error, trainer), *_own_code(error)]
        vars(error)["crash"] = Crash(found, trainer.run_dir)
        raise


def crash_of(error: Exception) -> Crash | None:
    """What :func:`explaining` remembered; ``None`` if no run raised the exception."""
    found = vars(error).get("crash")
    return found if isinstance(found, Crash) else None


def _lost(error: Exception) -> Iterator[str]:
    """Whether it is another process that broke off, and this one noticed."""
    is_lost = isinstance(error, dist.DistError) or "closed by peer" in str(error) or "gloo" in str(error)
    if is_distributed() and is_lost and isinstance(error, RuntimeError):
        yield "another process ended, or did not answer in time, which its own error tells"


def _module(error: Exception, trainer: Trainer) -> Iterator[str]:
    """The innermost module that was computing."""
    selves = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [each for each in selves if isinstance(each, nn.Module)]
    if modules:
        yield f"in {_called(modules[-1], trainer)}"


def _called(module: nn.Module, trainer: Trainer) -> str:
    is_leaf = next(module.children(), None) is None
    shown = f"{type(module).__name__}({module.extra_repr() if is_leaf else '…'})"
    if module is trainer.loss_fn:
        return f"the loss, {shown}"
    for of, model in trainer.models.items():
        names = [name for name, each in model.named_modules() if each is module]
        if names:
            whole = ".".join(filter(None, (of, names[0])))
            return f"the module {whole!r}, {shown}" if whole else f"the model, {shown}"
    return shown


def _own_code(error: Exception) -> Iterator[str]:
    """The innermost line of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)]
    if own:
        yield f"in {own[-1].filename}:{own[-1].lineno}, in {own[-1].name}: {own[-1].line}"


def _is_own(filename: str) -> bool:
    path = Path(filename)
    return path.is_file() and not any(path.is_relative_to(folder) for folder in _FOREIGN)
