"""Train a GAN on handwritten digits: generator and discriminator have a weight decay and clipping of their own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import weightsmith_plugins as w
from ignite.engine import Events
from ignite.metrics import FID
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from noting import Noted
from real_data import Digits
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.utils.data import DataLoader
from train_digits import DigitNet
from weightsmith import Plugin, Trainer, matrices, named
from weightsmith.cli import Launch, script
from weightsmith.distributed import mean_over_processes, rank, share, world_size

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
    """From digits to a number, of shape ``(batch, 1)``: high for real ones."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(
            *(nn.Flatten(), nn.Linear(64, width), nn.LeakyReLU(0.2)),
            *(nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)),
        )

    def forward(self, digits: Tensor) -> Tensor:
        said: Tensor = super().forward(20 * (digits - 0.5))  # layers that amplify by at most 1 need far inputs
        return said


def step(trainer: Trainer, batch: Sequence[Tensor]) -> None:
    """An update of each, with the hinge losses of Miyato et al. (2018), arXiv:1802.05957, equations 16 and 17."""
    generator, discriminator = trainer.models["generator"], trainer.models["discriminator"]
    real = trainer.to_device(batch[0])
    fake = generator(torch.randn(len(real), LATENT, device=real.device))
    telling = relu(1 - discriminator(real)).mean() + relu(1 + discriminator(fake.detach())).mean()
    trainer.update(telling, "discriminator")
    trainer.update(-discriminator(fake).mean(), "generator")


def generated_and_real(trainer: Trainer, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As many generated digits as real ones, from the same noise every time, of which each process takes its share."""
    noise = torch.randn(len(batch[0]) * world_size(), LATENT, generator=torch.Generator().manual_seed(0))
    own = trainer.to_device(noise[rank() :: world_size()])
    return trainer.models["generator"](own), trainer.to_device(batch[0])


def distance() -> FID:
    """Fréchet's distance between generated and real digits, in 64 features of a classifier that is trained here (Heusel
    et al. (2017), arXiv:1706.08500, there with another classifier's)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier: Any = DigitNet()
        batches = share(DataLoader(Digits("training"), batch_size=32, shuffle=True))
        trainer = Trainer(classifier, torch.optim.Adam(classifier.parameters(), lr=2e-3), nn.CrossEntropyLoss())
        trainer.run(batches, max_epochs=10)
    classifier.relu3, classifier.head = nn.Identity(), nn.Identity()
    return FID(num_features=64, feature_extractor=classifier.eval())


def shaping(generator_decay: float, discriminator_decay: float) -> list[Plugin]:
    """A decay and a clipping for each of the two; no layer of the discriminator amplifies by more than 1."""
    of_generator, of_discriminator = matrices & named("generator"), matrices & named("discriminator")
    return [
        w.Orthogonal(gain=2**0.5, where=of_generator),
        w.SpectralNorm(where=of_discriminator),
        w.L2(generator_decay, where=of_generator),
        w.L2(discriminator_decay, where=of_discriminator),
        w.ClipNorm(1.0, where="generator"),
        w.ClipNorm(0.5, where="discriminator"),
    ]


WATCHING = (
    *(w.WeightHistograms(), w.SpectralNorms(), w.GradientNorms(), w.Losses(), w.PenaltyCosts()),
    *(w.TensorBoard(), w.Checkpoints("20 epochs")),
)


@script(epochs=100, runs=Path(__file__).parents[1] / "runs" / "gan")
def train(
    launch: Launch,
    generator_decay: NonNegativeFloat = 0.0,
    discriminator_decay: NonNegativeFloat = 3e-3,
    learning_rate: PositiveFloat = 1e-3,
) -> dict[str, Any]:
    """Train a GAN on handwritten digits.

    Args:
        launch: the options that all scripts have.
        generator_decay: charge per squared weight of the generator, in units of its loss.
        discriminator_decay: charge per squared weight of the discriminator, in units of its loss.
        learning_rate: Adam's step size for both, per update.

    Returns:
        Fréchet's distance to the digits that it was trained on, a mean over the last ten epochs; the largest magnitude
        of each loss; and the run's folder.
    """
    digits = Digits("training", launch.seed)
    models = launch.parallel({"generator": Generator(), "discriminator": Discriminator()})
    adam = {
        name: torch.optim.Adam(each.parameters(), learning_rate, betas=(0.5, 0.999)) for name, each in models.items()
    }
    shapers, noted = shaping(generator_decay, discriminator_decay), Noted()
    trainer = launch.trainer(models, adam, step=step, shaping=shapers, watching=WATCHING, keep=[noted])
    print("a classifier of digits learns, whose features tell how far generated digits are from real ones")
    real = launch.share(DataLoader(digits, batch_size=len(digits)), even=False)
    validation = trainer.validate_on(real, {"distance": distance()}, step=generated_and_real)
    validation.add_event_handler(Events.COMPLETED, lambda: noted.note("distance", validation.state.metrics["distance"]))

    @trainer.on(Events.ITERATION_COMPLETED)
    def note() -> None:
        for name, loss in trainer.state.losses.items():
            noted.note(name, abs(mean_over_processes(loss)))

    launch.train(trainer, launch.share(DataLoader(digits, batch_size=32, shuffle=True, drop_last=True)))
    largest = {f"largest_{name}_loss": max(noted[name]) for name in models}
    return {"distance": fmean(noted["distance"][-10:]), **largest, "run_dir": trainer.run_dir}


if __name__ == "__main__":
    sys.exit(train.main())
