"""Prune and quantize a network on handwritten digits of MNIST: how small it gets, and what that costs."""

import copy
import gzip
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import weightsmith_plugins as w
from ignite.metrics import Accuracy
from jsonargparse.typing import PositiveFloat, PositiveInt
from real_data import Mnist
from torch import nn
from torch.utils.data import DataLoader
from weightsmith import (
    ConfigurationError,
    Plugin,
    Trainer,
    cubic,
    load_plain_state_dict,
    matrices,
    named,
    plain_state_dict,
)
from weightsmith.cli import Launch, script
from weightsmith.distributed import first_does, share
from weightsmith.files import read_tensors


class MnistNet(nn.Sequential):
    """Two convolutions and two linear layers for 28 × 28 images; 10 classes, 105,866 weights."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 16, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
        )


def dense_model(path: Path, seed: int, epochs: int = 8) -> MnistNet:
    """A network that was trained as it is; trained now, if the file is not there."""
    model = MnistNet()
    if path.is_file():
        load_plain_state_dict(model, read_tensors(str(path)))
        return model
    print(f"the dense network is trained, for {path}")
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    trainer = Trainer(model, adam, nn.CrossEntropyLoss(), seed=seed)
    trainer.run(share(DataLoader(Mnist("training", seed), batch_size=64, shuffle=True)), max_epochs=epochs)
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.export(path)
    return model


def methods(sparsities: Sequence[float], epochs: int) -> dict[str, list[Plugin]]:
    """What is done to the dense network. It is pruned little by little over so many epochs (Zhu & Gupta (2017),
    arXiv:1710.01878), or to two of four consecutive inputs; it is trained with 8 bits."""
    way = f"{epochs} epochs"
    prunings = {f"{share:.0%} pruned": w.MagnitudePruning(cubic(0.0, share, over=way)) for share in sparsities}
    return {
        "dense": [],
        **{name: [pruning] for name, pruning in prunings.items()},
        "2:4": [w.MagnitudePruning(0.5, scope="2:4", where=matrices & ~named("0"))],
        "int8": [w.FakeQuantize(8)],
        **{f"{name}, int8": [pruning, w.FakeQuantize(8)] for name, pruning in list(prunings.items())[-1:]},
    }


WATCHING = (*(w.WeightHistograms(), w.Sparsity(), w.Losses(), w.TensorBoard()), w.Checkpoints())


@script(epochs=10, runs=Path(__file__).parents[1] / "runs" / "compress")
def train(
    launch: Launch,
    sparsities: tuple[PositiveFloat, ...] = (0.5, 0.97, 0.9),
    pruning_epochs: PositiveInt = 5,
    learning_rate: PositiveFloat = 1e-3,
) -> dict[str, Any]:
    """Prune, quantize, and both; each in a run of its own, from one dense network.

    Args:
        launch: the options that all scripts have; the plugins of a file are compared with the dense network.
        sparsities: shares of the weights that pruning sets to zero; the last is tried with 8 bits as well.
        pruning_epochs: over which the shares grow.
        learning_rate: Adam's step size, per update.

    Returns:
        For each method its accuracy, the share of zeros, and the bytes of the file; and the folder of the picture.
    """
    if launch.shard:
        raise ConfigurationError("compress makes integers of whole weights, and takes no --shard")
    launch.at("dense")  # refuses to go on with one of several
    model = dense_model(launch.runs / f"dense_{launch.seed}.safetensors", launch.seed)
    chosen = methods(sparsities, pruning_epochs) if launch.plugins is None else {"dense": [], "yours": []}
    found = {}
    for name, shapers in chosen.items():
        plugins = Path("none") if name == "dense" else launch.plugins
        one = replace(launch.at(re.sub(r"\W+", "_", name)), plugins=plugins)
        found[name] = compressed(one, copy.deepcopy(model), shapers, learning_rate)
    print(f"{'':16} accuracy  zeros    bytes")
    for name, numbers in found.items():
        print(f"{name:16} {numbers['accuracy']:7.2%} {numbers['zeros']:6.1%} {numbers['bytes']:8,}")
    print(f"the picture is {first_does(lambda: draw(found, launch.runs / 'compress.png'))}")
    return {**found, "run_dir": launch.runs}


def compressed(launch: Launch, model: nn.Module, shapers: Sequence[Plugin], learning_rate: float) -> dict[str, float]:
    """Go on training the dense network with these plugins, and measure what came of it."""
    model = launch.parallel(model)
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate)
    trainer = launch.trainer(model, adam, nn.CrossEntropyLoss(), shaping=shapers, watching=WATCHING)
    training = launch.share(DataLoader(Mnist("training", launch.seed), batch_size=64, shuffle=True))
    validation = launch.share(DataLoader(Mnist("validation", launch.seed), batch_size=500), even=False)
    trainer.validate_on(validation, {"accuracy": Accuracy()})
    launch.train(trainer, training)
    zeros = w.sparsity_report(trainer).total
    is_quantized = any(isinstance(plugin, w.FakeQuantize) for plugin in trainer.plugins)
    small = w.to_int8(trainer, training) if is_quantized else trainer.model.cpu().eval()
    measured = trainer.evaluate(validation, {"accuracy": Accuracy()}, step=lambda _, batch: (small(batch[0]), batch[1]))
    return {**measured, "zeros": zeros, "bytes": stored(small if is_quantized else None, trainer)}


def stored(integers: nn.Module | None, trainer: Trainer) -> int:
    """The bytes of a file with the weights, compressed: zeros take next to no place there."""
    file = io.BytesIO()
    torch.save(plain_state_dict(trainer.model) if integers is None else integers.state_dict(), file)
    return len(gzip.compress(file.getvalue()))


def draw(found: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Accuracy against the share of zeros, and against size, into a picture."""
    figure, both = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for name, numbers in found.items():
        for axes, across in zip(both, (100 * numbers["zeros"], numbers["bytes"] / 1000), strict=True):
            axes.scatter(across, 100 * numbers["accuracy"], label=name)
    both[0].set(xlabel="zeros in %", ylabel="accuracy in %")
    both[1].set(xlabel="kB, compressed")
    both[1].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(train.main())
