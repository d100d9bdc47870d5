"""Start from a model that tells the digits 0 to 4 apart, and learn 5 to 9 with a new head, and forget little."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
import weightsmith_plugins as w
from ignite.metrics import Accuracy
from jsonargparse.typing import PositiveFloat
from real_data import Digits, Part
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.data import DataLoader, TensorDataset
from train_digits import DigitNet
from weightsmith import Plugin, Trainer, named
from weightsmith.cli import Launch, script
from weightsmith.distributed import first_does, share
from weightsmith.files import read_tensors, write_tensors

Keep = Literal["consolidation", "l2sp", "nothing"]


class SomeDigits(TensorDataset):
    """The digits 0 to 4, or 5 to 9, with classes 0 to 4."""

    def __init__(self, first: int, part: Part, seed: int = 0) -> None:
        images, labels = Digits(part, seed).tensors
        chosen = (labels >= first) & (labels < first + 5)
        super().__init__(images[chosen], labels[chosen] - first)


class FiveDigits(DigitNet):
    """The network of ``train_digits.py``, with a head for 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)


def batches(first: int, part: Part, seed: int) -> DataLoader[Any]:
    loader = DataLoader(SomeDigits(first, part, seed), batch_size=32, shuffle=part == "training")
    shared: DataLoader[Any] = share(loader, even=part == "training")
    return shared


def first_task(folder: Path, seed: int) -> tuple[str, str]:
    """The files of a model that tells 0 to 4 apart, and of how much it needs each weight; made if there are none."""
    weights, importance = (folder / f"{name}_{seed}.safetensors" for name in ("first_task", "importance"))
    if not importance.is_file():
        print(f"the first task is learnt, for {weights}")
        model = FiveDigits()
        adam = torch.optim.Adam(model.parameters(), lr=2e-3)
        trainer = Trainer(model, adam, nn.CrossEntropyLoss(), seed=seed)
        trainer.run(batches(0, "training", seed), max_epochs=10)
        folder.mkdir(parents=True, exist_ok=True)
        trainer.export(weights)
        every_digit = DataLoader(SomeDigits(0, "training", seed), batch_size=32)
        needed = w.fisher_information(model, every_digit, nn.CrossEntropyLoss())
        first_does(lambda: write_tensors(importance, needed))
    return str(weights), str(importance)


def shaping(keep: Keep, weights: str, importance: str) -> list[Plugin]:
    """All but the head starts from the first task's model, and is charged for leaving it."""
    body = ~named("head")
    charge = {
        "consolidation": [w.ElasticConsolidation(1e4, importance, where=body)],
        "l2sp": [w.L2SP(0.03, where=body)],
        "nothing": [],
    }
    return [w.Pretrained(weights, where=body), w.ClipNorm(1.0), *charge[keep]]


WATCHING = (
    *(w.WeightHistograms(), w.UpdateRatio(), w.Losses(), w.PenaltyCosts(), w.TensorBoard()),
    w.Checkpoints(best="new"),
)


@script(epochs=20, runs=Path(__file__).parents[1] / "runs" / "finetune")
def train(launch: Launch, keep: Keep = "consolidation", learning_rate: PositiveFloat = 5e-3) -> dict[str, Any]:
    """Learn the digits 5 to 9, from a model of 0 to 4.

    Args:
        launch: the options that all scripts have. (Other plugins take the place of Pretrained as well, and with none
            nothing is kept.)
        keep: what is charged: by consolidation the distance from the start, for each weight as much as the first task
            needs it; by l2sp for each alike; or nothing.
        learning_rate: Adam's step size, per update.

    Returns:
        The accuracy on the new digits and, with the old head, on the old ones, and the run's folder.
    """
    network = FiveDigits()
    model = launch.parallel(network)
    weights, importance = first_task(launch.runs, launch.seed)
    old_head = [read_tensors(weights)[name] for name in ("head.weight", "head.bias")]
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate)
    shapers = shaping(keep, weights, importance)
    trainer = launch.trainer(model, adam, nn.CrossEntropyLoss(), shaping=shapers, watching=WATCHING)

    def with_old_head(trainer: Trainer, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = trainer.to_device(batch)
        with network.head.register_forward_hook(lambda _, inputs, __: linear(*inputs, *trainer.to_device(old_head))):
            return model(images), labels

    trainer.validate_on(batches(5, "validation", launch.seed), {"new": Accuracy()})
    trainer.validate_on(batches(0, "validation", launch.seed), {"kept": Accuracy()}, step=with_old_head)
    launch.train(trainer, batches(5, "training", launch.seed))
    return {**trainer.state.metrics, "run_dir": trainer.run_dir}


if __name__ == "__main__":
    sys.exit(train.main())
