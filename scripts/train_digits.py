"""Train a small convolutional network on scikit-learn's handwritten digits, with one plugin of each kind."""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from ignite.metrics import Accuracy, Loss
from jsonargparse import auto_cli
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from weightsmith import Trainer, linear
from weightsmith.runs import choose_run_dir, save_configuration
from weightsmith_plugins import (
    EMA,
    L2,
    Checkpoints,
    Clamp,
    ClipNorm,
    GradientHistograms,
    LearningRates,
    Losses,
    MaxNorm,
    Orthogonal,
    PenaltyCosts,
    Perturb,
    TensorBoard,
    Violations,
    WeightHistograms,
)

ROOT = Path(__file__).parents[1]


class DigitNet(nn.Sequential):
    """Two convolutions and two linear layers for 8 × 8 images; 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.relu3 = nn.ReLU()
        self.head = nn.Linear(64, 10)


class Digits(TensorDataset):
    """1,437 digits to train on, or 360 to validate on, values 0 to 1; split by class with the given seed."""

    def __init__(self, part: Literal["training", "validation"], seed: int = 0) -> None:
        images, labels = load_digits(return_X_y=True)
        scaled = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
        parts = train_test_split(scaled, labels, test_size=360, stratify=labels, random_state=seed)
        first = 0 if part == "training" else 1
        super().__init__(torch.as_tensor(parts[first]), torch.as_tensor(parts[2 + first]))


def train(
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    l2: float = 1e-4,
    max_norm: float = 1.5,
    head_bound: float = 0.3,
    seed: int = 0,
    device: str = "cpu",
    runs: Path = ROOT / "runs" / "digits",
    resume: str | None = None,
) -> dict[str, Any]:
    """Train a small convolutional network on handwritten digits, with one weightsmith plugin of each kind.

    Args:
        epochs: passes over the 1,437 training digits.
        batch_size: digits per update.
        learning_rate: Adam's step size, per update.
        l2: charge per squared weight, in units of the loss.
        max_norm: largest norm of the weights into one unit, for all layers but the head.
        head_bound: largest weight by magnitude that the head computes with.
        seed: of the split, the order of the digits and every random draw.
        device: a torch device, such as cpu or cuda.
        runs: folder in which the run gets a folder of its own.
        resume: auto goes on with the run in it that was saved last; or the folder of a run, or one of its checkpoints.

    Returns:
        The metrics of the last epoch, those of the averaged weights, and the run's folder.
    """
    options = {key: str(value) if isinstance(value, Path) else value for key, value in locals().items()}
    run_dir, goes_on = choose_run_dir(runs, resume)
    torch.manual_seed(seed)
    model = DigitNet()
    trainer = Trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=learning_rate),
        nn.CrossEntropyLoss(),
        run_dir=run_dir,
        device=device,
        seed=seed,
        plugins=[
            Orthogonal(gain=2**0.5),
            L2(l2),
            ClipNorm(1.0),
            Perturb(linear(1e-3, 0.0), where="hidden.weight"),
            MaxNorm(max_norm, where=["conv1.weight", "conv2.weight", "hidden.weight"]),
            Clamp(-head_bound, head_bound, where="head.weight", mode="forward"),
            EMA(0.99),
            WeightHistograms(),
            GradientHistograms(),
            Losses(),
            LearningRates(),
            PenaltyCosts(),
            Violations(),
            TensorBoard(),
            Checkpoints(best="accuracy"),
        ],
    )
    if not goes_on:
        save_configuration(run_dir, options, trainer.plugins)
    validation = DataLoader(Digits("validation", seed), batch_size=360)
    metrics = {"accuracy": Accuracy(), "validation_loss": Loss(nn.CrossEntropyLoss())}
    trainer.validate_on(validation, metrics)
    progress = ProgressBar(disable=None)  # none where nobody watches: a pipe, a log file
    progress.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def report() -> None:
        found = trainer.state.metrics
        progress.log_message(
            f"epoch {trainer.state.epoch:2d}  accuracy {found['accuracy']:.2%}  loss {found['validation_loss']:.4f}  "
            f"largest unit norm {largest_unit_norm(model):.4f} ≤ {max_norm}  "
            f"largest head weight {model.head.weight.abs().max():.4f} ≤ {head_bound}  "
            f"violations {sum(value > 0 for value in trainer.violations().values())}"
        )

    if goes_on:
        print(f"going on from {trainer.resume(run_dir if resume == 'auto' else resume)}")
    training = DataLoader(Digits("training", seed), batch_size=batch_size, shuffle=True)
    trainer.run(training, max_epochs=epochs)
    with trainer.averaged():
        averaged = trainer.evaluate(validation, metrics)
    print(f"validation accuracy {trainer.state.metrics['accuracy']:.2%}, averaged weights {averaged['accuracy']:.2%}")
    print(f"the run is in {run_dir}")
    print(f"view it with: {Path(sys.executable).with_name('tensorboard')} --logdir {run_dir.parent}")
    return {**trainer.state.metrics, "averaged_accuracy": averaged["accuracy"], "run_dir": run_dir}


def largest_unit_norm(model: DigitNet) -> Tensor:
    """The largest L2 norm of the weights into one unit, over the constrained layers."""
    layers = [model.conv1, model.conv2, model.hidden]
    return torch.stack([layer.weight.detach().flatten(1).norm(dim=1).max() for layer in layers]).max()


if __name__ == "__main__":
    auto_cli(train)
