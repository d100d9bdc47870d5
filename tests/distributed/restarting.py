"""A script that torchrun starts: trains with two processes, of which the second is killed, or raises, where it is told.

    python -m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=3 restarting.py FOLDER [KILLS…]

Each of KILLS is an iteration before whose end process 1 kills itself, once; with ``raise:`` before it, it raises there.
"""

import os
import signal
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch
from ignite.engine import Events
from saving import batches, trainer_of, whole_weights
from weightsmith.checkpoint import saved_in
from weightsmith.distributed import joined, rank
from weightsmith_plugins import Checkpoints


def main(folder, *orders):
    torch.set_num_threads(1)
    run_dir = folder / "run"
    trainer = trainer_of("copies", draws=True, run_dir=run_dir, plugins=[Checkpoints("1 updates", keep=2)])
    if saved_in(run_dir / "checkpoints"):
        trainer.resume(run_dir)
    with (folder / "began").open("a") as file:
        file.write(f"process {rank()} from {trainer.state.iteration}\n")

    @trainer.on(Events.ITERATION_STARTED)
    def die():
        for order in orders if rank() == 1 else ():
            what, _, iteration = order.rpartition(":")
            done = folder / f"done-{iteration}"
            if trainer.state.iteration == int(iteration) and not done.exists():
                done.touch()
                if what == "raise":
                    raise ValueError("on purpose")
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.run(batches(), max_epochs=3)
    if rank() == 0:
        torch.save(whole_weights(trainer), folder / "end.pt")


if __name__ == "__main__":
    with joined():
        main(Path(sys.argv[1]), *sys.argv[2:])
