"""What each process does in the tests of scripts/train_digits.py: the script itself, which writes its whole weights."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import train_digits
from parting import tell_what_is_left
from weightsmith.cli import Launch
from weightsmith.distributed import is_first
from weightsmith.files import write_tensors
from weightsmith.shards import gather
from weightsmith_plugins import Checkpoints


class EvenDigits(train_digits.Digits):
    """The digits without the last of an odd number, so that no sample comes twice on two processes."""

    def __init__(self, part, seed=0):
        super().__init__(part, seed)
        even = len(self) // 2 * 2
        self.tensors = tuple(tensor[:even] for tensor in self.tensors)


def trained(launch, trainer, batches):
    """Train, and write the weights; no checkpoint."""
    trainer.run(batches, max_epochs=launch.epochs)
    weights = {name: gather(weight.detach()) for name, weight in trainer.weights().items()}
    if is_first():
        accuracy = trainer.state.metrics["accuracy"]
        print(f"accuracy {accuracy!r}, losses {sorted(trainer.published)}")
        write_tensors(trainer.run_dir / "weights.safetensors", weights)


if __name__ == "__main__":
    train_digits.Digits = EvenDigits
    train_digits.WATCHING = tuple(plugin for plugin in train_digits.WATCHING if not isinstance(plugin, Checkpoints))
    Launch.train = trained
    code = train_digits.train.main()
    tell_what_is_left()
    sys.exit(code)
