"""What several test files need."""

import sys

import pytest

PIECES = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Net(nn.Sequential):
    def __init__(self, width: int = 8, activation: nn.Module | None = None):
        super().__init__(nn.Linear(4, width), activation or nn.Tanh(), nn.Linear(width, 3))


def points(count: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def turned_round(trainer, batch):
    inputs, targets = batch
    return trainer.model(-inputs), targets


def perhaps(width: int) -> nn.Module | None:
    return Net(width) if width else None


class Stacked(nn.Sequential):
    def __init__(self, layers: list[nn.Module], named: dict[str, nn.Module] | None = None):
        super().__init__(*layers, *(named or {}).values())


class Texts(nn.Linear):
    def __init__(self, text: str | None = None, either: int | str = 0, free="", table: dict[str, int] | None = None):
        super().__init__(4, 3)
        self.seen = (text, either, free, table)


class Start(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)


def scaled(outputs, targets, scale: float = 1.0):
    return nn.functional.cross_entropy(outputs, targets) * scale


def untold(count: int):
    return points(count)


def step(trainer, batch, scale: float = 1.0):
    inputs, targets = batch
    first, second = trainer.models["first"], trainer.models["second"]
    trainer.update(lambda: nn.functional.cross_entropy(first(inputs), targets) * scale, optimizer="first")
    trainer.update(lambda: nn.functional.cross_entropy(second(inputs), targets), optimizer="second")
"""


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """A folder with a module of pieces for recipes in it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "pieces.py").write_text(PIECES, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "pieces", raising=False)
    yield tmp_path
    sys.modules.pop("pieces", None)
