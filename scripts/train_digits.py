"""Train a small convolutional network on scikit-learn's handwritten digits, with one plugin of each kind."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from ignite.metrics import Accuracy, Loss
from jsonargparse import auto_cli
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from weightsmith import Average, Plugin, Trainer, linear
from weightsmith.cli import guarded
from weightsmith.recipe import read_plugins
from weightsmith.runs import run_folder
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


def shaping(l2: float, max_norm: float, head_bound: float) -> list[Plugin]:
    """What shapes the weights: one plugin of each kind."""
    return [
        Orthogonal(gain=2**0.5),
        L2(l2),
        ClipNorm(1.0),
        Perturb(linear(1e-3, 0.0), where="hidden.weight"),
        MaxNorm(max_norm, where=["conv1.weight", "conv2.weight", "hidden.weight"]),
        Clamp(-head_bound, head_bound, where="head.weight", mode="forward"),
        EMA(0.99),
    ]


WATCHING = (
    WeightHistograms(),
    GradientHistograms(),
    Losses(),
    LearningRates(),
    PenaltyCosts(),
    Violations(),
    TensorBoard(),
    Checkpoints(best="accuracy"),
)


def train(
    epochs: PositiveInt = 20,
    batch_size: PositiveInt = 32,
    learning_rate: PositiveFloat = 2e-3,
    l2: NonNegativeFloat = 1e-4,
    max_norm: PositiveFloat = 1.5,
    head_bound: PositiveFloat = 0.3,
    plugins: Path | None = None,
    seed: NonNegativeInt = 0,
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
        plugins: a YAML file of plugins that shape the weights, in place of the script's own, of which l2, max_norm and
            head_bound are settings.
        seed: of the split, the order of the digits and every random draw.
        device: a torch device, such as cpu or cuda.
        runs: folder in which the run gets a folder of its own.
        resume: auto goes on with the run in it that was saved last; or the folder of a run, or one of its checkpoints.

    Returns:
        The metrics of the last epoch, those of the averaged weights if there is an average, and the run's folder.
    """
    options = dict(locals())
    shapers = shaping(l2, max_norm, head_bound) if plugins is None else read_plugins(plugins)
    torch.manual_seed(seed)
    training = DataLoader(Digits("training", seed), batch_size=batch_size, shuffle=True)
    validation = DataLoader(Digits("validation", seed), batch_size=360)
    model = DigitNet()
    with run_folder(runs, resume, options) as run:
        trainer = Trainer(
            model,
            torch.optim.Adam(model.parameters(), lr=learning_rate),
            nn.CrossEntropyLoss(),
            run_dir=run.folder,
            device=device,
            seed=seed,
            plugins=[*shapers, *WATCHING],
        )
        run.begin(trainer)
    metrics = {"accuracy": Accuracy(), "validation_loss": Loss(nn.CrossEntropyLoss())}
    trainer.validate_on(validation, metrics)
    bounds = {"largest unit norm": max_norm, "largest head weight": head_bound} if plugins is None else {}
    report_epochs(trainer, model, bounds)
    trainer.run(training, max_epochs=epochs)
    found = {**trainer.state.metrics, "run_dir": run.folder}
    print(f"validation accuracy {found['accuracy']:.2%}")
    if any(isinstance(plugin, Average) for plugin in trainer.plugins):
        with trainer.averaged():
            found["averaged_accuracy"] = trainer.evaluate(validation, metrics)["accuracy"]
        print(f"averaged weights    {found['averaged_accuracy']:.2%}")
    print(f"the run is in {run.folder}")
    print(f"view it with: {Path(sys.executable).with_name('weightsmith')} view {run.folder.parent}")
    return found


def report_epochs(trainer: Trainer, model: DigitNet, bounds: Mapping[str, float]) -> None:
    """A progress bar, where somebody watches, and a line at the end of each epoch."""
    progress = ProgressBar(disable=None)
    progress.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def report() -> None:
        metrics = trainer.state.metrics
        sizes = {"largest unit norm": largest_unit_norm(model), "largest head weight": model.head.weight.abs().max()}
        shown = [f"{size} {v:.4f}" + (f" ≤ {bounds[size]}" if size in bounds else "") for size, v in sizes.items()]
        violated = sum(value > 0 for value in trainer.violations().values())
        progress.log_message(
            f"epoch {trainer.state.epoch:2d}  accuracy {metrics['accuracy']:.2%}  "
            f"loss {metrics['validation_loss']:.4f}  {'  '.join(shown)}  violations {violated}"
        )


def largest_unit_norm(model: DigitNet) -> Tensor:
    """The largest L2 norm of the weights into one unit, over all layers but the head."""
    layers = [model.conv1, model.conv2, model.hidden]
    return torch.stack([layer.weight.detach().flatten(1).norm(dim=1).max() for layer in layers]).max()


if __name__ == "__main__":
    sys.exit(guarded(lambda: auto_cli(train)))
