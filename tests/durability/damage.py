"""Damages checkpoints at random - bits flipped, files cut, emptied, swapped, taken away - and sees that each is
recognised, and the one before it taken."""

import argparse
import logging
import random
import shutil
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

import weightsmith_plugins as w  # noqa: E402
from weightsmith import DamagedCheckpointError  # noqa: E402
from weightsmith.checkpoint import find, read  # noqa: E402

import runs  # noqa: E402

FILES = ("weights.safetensors", "state.pt", "manifest.json")


def flip(chance, file, _):
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def cut(chance, file, _):
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def zero_a_page(chance, file, _):
    data = bytearray(file.read_bytes())
    start = chance.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    file.write_bytes(data)


def empty(chance, file, _):
    file.write_bytes(b"")


def swap(chance, file, other):
    mine = file.read_bytes()
    file.write_bytes(other.read_bytes())
    assert mine != file.read_bytes()


def take_away(chance, file, _):
    file.unlink()


def lengthen(chance, file, _):
    with file.open("ab") as opened:
        opened.write(chance.randbytes(chance.randint(1, 100)))


DAMAGES = [flip, flip, flip, cut, zero_a_page, empty, swap, take_away, lengthen]


def recognised(count, seed=0):
    """For each damaged checkpoint: what was done to it; whether that was recognised, and the older one taken."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        good = Path(place) / "good"
        trainer = runs.make([w.EMA(0.9), w.Checkpoints(5)], run_dir=good)
        trainer.run(runs.loader(), max_iters=10)
        for number in range(count):
            folder = Path(place) / str(number)
            shutil.copytree(good, folder)
            older, newest = (folder / "checkpoints" / f"{iteration:08d}" for iteration in (5, 10))
            damage, name = chance.choice(DAMAGES), chance.choice(FILES)
            before = (newest / name).read_bytes()
            damage(chance, newest / name, older / name)
            if (newest / name).exists() and (newest / name).read_bytes() == before:
                continue  # a page of zeros was zero
            try:
                read(newest)
                is_seen = False
            except DamagedCheckpointError:
                is_seen = True
            intact = damage is swap or find(folder) == older
            yield f"{damage.__name__} {name}", is_seen and intact
            shutil.rmtree(folder)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=200)
    logging.disable(logging.WARNING)
    found = list(recognised(arguments.parse_args().count))
    for what, is_seen in found:
        if not is_seen:
            print(f"not recognised: {what}")
    print(f"{sum(is_seen for _, is_seen in found)} of {len(found)} damaged checkpoints were recognised")
    raise SystemExit(not all(is_seen for _, is_seen in found))


if __name__ == "__main__":
    main()
