"""Train a recurrent network to forecast a season of sunspots or carbon dioxide, with weights of bounded magnitude."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
import weightsmith_plugins as w
from ignite.metrics import MeanAbsoluteError
from jsonargparse.typing import PositiveFloat
from noting import Noted
from real_data import SEASONS, Series, Windows, spread
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from weightsmith import Plugin, WeightEvents, biases
from weightsmith.cli import Launch, script
from weightsmith.shards import gather

Cell = Literal["LSTM", "GRU"]


class Forecaster(nn.Module):
    """From windows of shape ``(batch, steps)`` to the season after them, of shape ``(batch, season)``: a recurrent
    network tells how far it is from the season before."""

    def __init__(self, name: Series, cell: Cell = "LSTM", hidden: int = 32) -> None:
        super().__init__()
        self.season = SEASONS[name]
        self.rnn = {"LSTM": nn.LSTM, "GRU": nn.GRU}[cell](1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, self.season)

    def forward(self, windows: Tensor) -> Tensor:
        steps, _ = self.rnn((windows - windows[:, -1:]).unsqueeze(-1))
        change: Tensor = self.head(steps[:, -1])
        return windows[:, -self.season :] + change


def naive_error(name: Series) -> float:
    """The mean absolute error of the forecast that says the last season again."""
    windows, targets = Windows(name, "validation").tensors
    return (windows[:, -SEASONS[name] :] - targets).abs().mean().item()


def flat(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Forecasts and targets, each step on its own, as Ignite's metrics of regression take them."""
    return pair[0].flatten(), pair[1].flatten()


def shaping(bound: float) -> list[Plugin]:
    """Each gate starts orthogonal, and no gate amplifies what comes back to it; no weight and no gradient is large."""
    return [
        w.Orthogonal(where="rnn.weight_hh_l0"),
        w.ClipNorm(1.0),
        w.SpectralBound(1.0, where="rnn.weight_hh_l0"),
        w.Clamp(-bound, bound, where=["rnn.weight_ih_l0", biases]),
        w.MaxNorm(bound, where="head.weight"),
    ]


WATCHING = (
    *(w.WeightHistograms(), w.SpectralNorms(where="rnn.weight_hh_l0"), w.GradientNorms(), w.Losses(), w.Violations()),
    *(w.TensorBoard(), w.Checkpoints("25 epochs", best="error", mode="min")),
)


@script(epochs=100, runs=Path(__file__).parents[1] / "runs" / "forecaster")
def train(
    launch: Launch,
    name: Series = "sunspots",
    cell: Cell = "LSTM",
    learning_rate: PositiveFloat = 1.0,
    bound: PositiveFloat = 0.5,
) -> dict[str, Any]:
    """Train a recurrent network to forecast a season: 11 years of sunspots, or 12 months of carbon dioxide.

    Args:
        launch: the options that all scripts have.
        name: which series.
        cell: of the recurrent layer.
        learning_rate: of stochastic gradient descent with momentum 0.9, per update.
        bound: largest weight by magnitude, but for those from step to step, which amplify nothing by more than 1; and
            largest norm of the weights into one output.

    Returns:
        The mean absolute error of the last epoch and that of saying the last season again, in units of the series; the
        largest weight by magnitude and the largest norm of the gradient over all updates; and the run's folder.
    """
    model = launch.parallel(Forecaster(name, cell))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    noted = Noted()
    trainer = launch.trainer(model, optimizer, nn.MSELoss(), shaping=shaping(bound), watching=WATCHING, keep=[noted])
    validation = launch.share(DataLoader(Windows(name, "validation"), batch_size=500), even=False)
    trainer.validate_on(validation, {"error": MeanAbsoluteError(output_transform=flat)})

    @trainer.on(WeightEvents.GRADIENTS_COMPUTED)
    def note_gradient() -> None:
        gradients = [gather(weight.grad) for weight in model.parameters() if weight.grad is not None]
        noted.note("gradient", get_total_norm(gradients))

    @trainer.on(WeightEvents.UPDATE_COMPLETED)
    def note_weight() -> None:
        noted.note("weight", max(gather(weight.detach()).abs().max() for weight in model.parameters()))

    launch.train(trainer, launch.share(DataLoader(Windows(name, "training"), batch_size=32, shuffle=True)))
    found = {
        "error": spread(name) * trainer.state.metrics["error"],
        "naive_error": spread(name) * naive_error(name),
        "largest_weight": max(noted["weight"]),
        "largest_gradient": max(noted["gradient"]),
    }
    print(f"mean absolute error {found['error']:.3f}; of saying the last season again: {found['naive_error']:.3f}")
    print(f"largest weight {found['largest_weight']:.3g}, largest gradient norm {found['largest_gradient']:.3g}")
    return {**found, "run_dir": trainer.run_dir}


if __name__ == "__main__":
    sys.exit(train.main())
