"""Segment slices of a brain MRI into tissues with a small U-Net, whose encoder learnt to take noise away before."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import weightsmith_plugins as w
from ignite.engine import Events
from ignite.metrics import ConfusionMatrix, DiceCoefficient, MetricsLambda
from jsonargparse.typing import PositiveFloat, PositiveInt
from real_data import NOISE, TISSUES, Slices
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from weightsmith import Picture, Plugin, Trainer, matrices, named
from weightsmith.cli import Launch, script
from weightsmith.distributed import share
from weightsmith.evaluation import evaluating

Start = Literal["denoiser", "kaiming"]
COLOURS = torch.tensor([[0, 0, 0], [60, 90, 200], [130, 130, 130], [240, 240, 240]], dtype=torch.uint8)
WEIGHTS = (1.0, 5.0, 1.0, 1.0)
"""What an error costs in each tissue; there is little fluid."""


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions. Nothing normalises what they compute, so that it matters how they start."""
    first, second = (nn.Conv2d(channels, outputs, kernel_size=3, padding=1) for channels in (inputs, outputs))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class UNet(nn.Module):
    """From images of shape ``(batch, 1, height, width)``, sides multiples of 4, to ``(batch, outputs, height, width)``
    (Ronneberger et al. (2015), arXiv:1505.04597, smaller)."""

    def __init__(self, outputs: int = len(TISSUES), width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([block(1, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.decoder = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.head = nn.Conv2d(width, outputs, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        seen = [self.encoder[0](images / NOISE)]  # so that tissues differ by about 1
        for down in [*self.encoder][1:]:
            seen.append(down(nn.functional.max_pool2d(seen[-1], 2)))
        found = seen.pop()
        for up in self.decoder:
            found = up(torch.cat([interpolate(found, scale_factor=2.0), seen.pop()], dim=1))
        segmented: Tensor = self.head(found)
        return segmented


def step(trainer: Trainer, batch: tuple[Tensor, Tensor]) -> None:
    """An update on images with noise that is drawn anew."""
    images, tissues = trainer.to_device(batch)
    weight = images.new_tensor(WEIGHTS)
    trainer.update(lambda: cross_entropy(trainer.model(noisy(images)), tissues, weight))


def noisy(images: Tensor) -> Tensor:
    return images + NOISE * torch.randn_like(images)


def denoiser(path: Path, seed: int, epochs: int = 150) -> str:
    """The file of a U-Net that learnt to take noise away from all training slices; made if it is not there."""
    if not path.is_file():
        print(f"a U-Net learns to take noise away, for {path}")
        model = UNet(outputs=1)

        def denoise(trainer: Trainer, batch: tuple[Tensor, Tensor]) -> None:
            trainer.update(lambda: mse_loss(model(noisy(batch[0])), batch[0]))

        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        start = w.KaimingNormal(where=matrices & ~named("head"))
        trainer = Trainer(model, adam, step=denoise, plugins=[start, w.ClipNorm(1.0)], seed=seed)
        trainer.run(share(DataLoader(Slices("training"), batch_size=4, shuffle=True)), max_epochs=epochs)
        path.parent.mkdir(parents=True, exist_ok=True)
        trainer.export(path)
    return str(path)


class Predictions(Plugin):
    """Pictures of validation slices every tenth epoch, ``predictions``: what the network sees, what it says, what is
    there."""

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        def draw() -> None:
            images, tissues = Slices("validation")[::4]
            with torch.no_grad(), evaluating(trainer.models):
                said = trainer.model(images.to(trainer.device)).argmax(dim=1).cpu()
            seen = (images[:, 0, ..., None].clamp(0, 1) * 255).to(torch.uint8).expand(-1, -1, -1, 3)
            rows = torch.cat([seen, COLOURS[said], COLOURS[tissues]], dim=2).flatten(0, 1)
            enlarged = rows.repeat_interleave(3, dim=0).repeat_interleave(3, dim=1)
            trainer.publish({"predictions": Picture(enlarged)}, step=trainer.state.epoch)

        yield Events.EPOCH_COMPLETED(every=10), draw


def shaping(start: Start, path: str) -> list[Plugin]:
    """All but the head starts from the denoiser, or as the denoiser itself once did; no update is large."""
    starts = {
        "denoiser": w.Pretrained(path, where=["encoder", "decoder"]),
        "kaiming": w.KaimingNormal(where=matrices & ~named("head")),
    }
    return [starts[start], w.ClipNorm(1.0)]


WATCHING = (
    *(w.WeightHistograms(), w.GradientNorms(), w.UpdateRatio(), w.Losses(), w.LearningRates(), Predictions()),
    *(w.TensorBoard(), w.Checkpoints("25 epochs")),
)


def dice(tissue: str) -> MetricsLambda:
    """Dice's coefficient of one tissue, 2 · |said ∩ there| / (|said| + |there|)."""
    coefficients: MetricsLambda = DiceCoefficient(ConfusionMatrix(len(TISSUES)))
    return coefficients[TISSUES.index(tissue)]


@script(epochs=150, runs=Path(__file__).parents[1] / "runs" / "segmentation")
def train(
    launch: Launch, labelled: PositiveInt = 4, start: Start = "denoiser", learning_rate: PositiveFloat = 3e-3
) -> dict[str, Any]:
    """Segment slices of a brain MRI into grey matter, white matter, fluid and background.

    Args:
        launch: the options that all scripts have.
        labelled: slices whose tissues are known in training, of 29.
        start: of all but the head: from the denoiser, which is made first, or drawn by Kaiming's scheme. (With other
            plugins they decide.)
        learning_rate: Adam's step size for the first update; it falls to 0 along a cosine, by epoch.

    Returns:
        Dice's coefficient of each tissue in the last epoch, and the run's folder.
    """
    model = launch.parallel(UNet())
    needs_denoiser = launch.plugins is None and start == "denoiser"
    path = launch.runs / f"denoiser_{launch.seed}.safetensors"
    shapers = shaping(start, denoiser(path, launch.seed) if needs_denoiser else str(path))
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate)
    scheduler = LambdaLR(adam, lambda epoch: (1 + math.cos(math.pi * epoch / launch.epochs)) / 2)
    trainer = launch.trainer(model, adam, step=step, shaping=shapers, watching=WATCHING, keep=[scheduler])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
    metrics = {tissue: dice(tissue) for tissue in TISSUES[1:]}
    trainer.validate_on(launch.share(DataLoader(Slices("validation"), batch_size=12), even=False), metrics)
    launch.train(trainer, launch.share(DataLoader(Slices("training", labelled), batch_size=4, shuffle=True)))
    return {**trainer.state.metrics, "run_dir": trainer.run_dir}


if __name__ == "__main__":
    sys.exit(train.main())
