"""A script of which one process is killed, once, in the middle of an epoch: the processes that torchrun starts in its
place go on with the run."""

import os
import signal
import sys
from typing import Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weightsmith import Trainer, WeightEvents
from weightsmith.cli import Launch, script
from weightsmith_plugins import L2, Checkpoints, KaimingNormal

DIE_AT = 11


def fail() -> None:
    raise ValueError("on purpose")


ENDS = {"well": lambda: None, "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "raise": fail}


@script(epochs=4)
def train(launch: Launch, end: Literal["well", "kill", "raise"] = "well") -> None:
    """Train a small network.

    Args:
        launch: the options that all scripts have.
        end: what the second process comes to, at first.
    """
    torch.manual_seed(3)
    data = TensorDataset(torch.randn(32, 5), torch.randn(32, 2))
    model = launch.parallel(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2)))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    trainer: Trainer = launch.trainer(
        model, adam, nn.MSELoss(), shaping=[KaimingNormal(), L2(1e-3)], watching=[Checkpoints("4 updates")]
    )
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED(once=DIE_AT), ENDS[end])
    launch.train(trainer, launch.share(DataLoader(data, batch_size=4, shuffle=True)))


if __name__ == "__main__":
    sys.exit(train.main())
