"""The first things that people ask for, each as a plugin beside the PyTorch that people write by hand, and checked equal."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import weightsmith_plugins as w
from jsonargparse.typing import PositiveFloat
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_digits import Digits
from weightsmith import Constraint, Initializer, Penalty, Plugin, Site, Trainer, WeightEditor
from weightsmith.cli import Launch, script


class Constant(Initializer):
    """Set weights to a constant."""

    value: float = 0.01

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return torch.full_like(weight, self.value)


class Scaled(Initializer):
    """Scale the weights that the layer was made with."""

    factor: float = 0.5

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return self.factor * weight


class AlongGradient(WeightEditor):
    """Edit weights from their gradients: a step of their signs after every update."""

    rate: float = 1e-4

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return weight - self.rate * gradient.sign()


class Clamped(Constraint):
    """The layer computes with weights between −limit and limit."""

    limit: float = 0.1

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.clamp(-self.limit, self.limit)


class Absolute(Penalty):
    """L1: charge strength · Σ|w|."""

    strength: float = 1e-4

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.abs().sum()


class Squared(Penalty):
    """L2: charge strength · Σw²."""

    strength: float = 1e-4

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.square().sum()
