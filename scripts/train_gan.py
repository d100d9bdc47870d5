"""Train a GAN on handwritten digits, whose generator and discriminator each have a weight decay and clipping of their own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import FID
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from train_digits import DigitNet, Digits
from weightsmith import Plugin, Trainer, matrices, named
from weightsmith.cli import Launch, script
from weightsmith_plugins import (
    L2,
    Checkpoints,
    ClipNorm,
    GradientNorms,
    Losses,
    Orthogonal,
    PenaltyCosts,
    SpectralNorm,
    TensorBoard,
    WeightHistograms,
)

LATENT = 16


class Generator(nn.Sequential):
    """From noise of shape ``(batch, 16)`` to digits of shape ``(batch, 1, 8, 8)``, values 0 to 1."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(
            *(nn.Linear(LATENT, width), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))),
        )


class Discriminator(nn.Sequential):
    """From digits to a logit, of shape ``(batch, 1)``: real, or not."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(
            nn.Flatten(),
            *(nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)),
            nn.Linear(width, 1),
        )


def step(trainer: Trainer, batch: Sequence[Tensor]) -> None:
    """An update of each: the discriminator tells real from generated, the generator deceives it (Goodfellow et al.
    (2014), arXiv:1406.2661, with the generator's loss of its section 3)."""
    generator, discriminator = trainer.models["generator"], trainer.models["discriminator"]
    real = trainer.to_device(batch[0])
    fake = generator(torch.randn(len(real), LATENT, device=real.device))
    trainer.update(
        -logsigmoid(discriminator(real)).mean() - logsigmoid(-discriminator(fake.detach())).mean(), "discriminator"
    )
    trainer.update(-logsigmoid(discriminator(fake)).mean(), "generator")


def generated_and_real(trainer: Trainer, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As many generated digits as real ones, from the same noise every time."""
    noise = torch.randn(len(batch[0]), LATENT, generator=torch.Generator().manual_seed(0))
    return trainer.models["generator"](trainer.to_device(noise)), trainer.to_device(batch[0])


def distance() -> FID:
    """Fréchet's distance between generated and real digits, in the 64 features of a classifier of digits (Heusel et al.
    (2017), arXiv:1706.08500, there with another classifier's)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier: Any = DigitNet()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
        Trainer(classifier, optimizer, nn.CrossEntropyLoss()).run(
            DataLoader(Digits("training"), batch_size=32, shuffle=True), max_epochs=10
        )
    classifier.head = nn.Identity()
    return FID(num_features=64, feature_extractor=classifier.eval())


def shaping(generator_decay: float, discriminator_decay: float) -> list[Plugin]:
    """A start, a decay and a clipping for each of the two; the discriminator amplifies nothing by more than 1."""
    of_generator, of_discriminator = matrices & named("generator"), matrices & named("discriminator")
    return [
        Orthogonal(gain=2**0.5, where=of_generator),
        SpectralNorm(where=of_discriminator),
        L2(generator_decay, where=of_generator),
        L2(discriminator_decay, where=of_discriminator),
        ClipNorm(1.0, where="generator"),
        ClipNorm(0.5, where="discriminator"),
    ]


WATCHING = (WeightHistograms(), GradientNorms(), Losses(), PenaltyCosts(), TensorBoard(), Checkpoints("20 epochs"))


@script(epochs=150, runs=Path(__file__).parents[1] / "runs" / "gan")
def train(
    launch: Launch,
    generator_decay: NonNegativeFloat = 0.0,
    discriminator_decay: NonNegativeFloat = 1e-2,
    learning_rate: PositiveFloat = 1e-3,
) -> dict[str, Any]:
    """Train a GAN on handwritten digits.

    Args:
        launch: the options that all scripts have.
        generator_decay: charge per squared weight of the generator, in units of its loss.
        discriminator_decay: charge per squared weight of the discriminator, in units of its loss.
        learning_rate: Adam's step size for both, per update.

    Returns:
        The distance of the last epoch, the largest loss of each after the first epoch, and the run's folder.
    """
    digits = Digits("training", launch.seed)
    models = {"generator": Generator(), "discriminator": Discriminator()}
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        for name, model in models.items()
    }
    shapers = shaping(generator_decay, discriminator_decay)
    trainer = launch.trainer(models, optimizers, step=step, shaping=shapers, watching=WATCHING)
    real = DataLoader(digits, batch_size=len(digits))
    trainer.validate_on(real, {"distance": distance()}, step=generated_and_real, every=10)
    largest = dict.fromkeys(models, 0.0)

    @trainer.on(Events.ITERATION_COMPLETED(after=len(digits) // 64))
    def note() -> None:
        for name, loss in trainer.state.losses.items():
            largest[name] = max(largest[name], float(loss))

    launch.train(trainer, DataLoader(digits, batch_size=64, shuffle=True, drop_last=True))
    for name, value in largest.items():
        print(f"largest loss of the {name} after the first epoch: {value:.2f}")
    found = {f"largest_{name}_loss": value for name, value in largest.items()}
    return {**trainer.state.metrics, **found, "run_dir": trainer.run_dir}


if __name__ == "__main__":
    sys.exit(train.main())
