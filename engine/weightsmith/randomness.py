"""The states of all global random generators: Python's, NumPy's, torch's, CUDA's."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["keeping_random_states", "random_states", "restore_random_states", "seed_from", "states_from"]


def random_states() -> dict[str, Any]:
    """The states as they are now, as tensors, numbers and texts.

    >>> states = random_states()
    >>> drawn = random.random(), np.random.rand(), torch.rand(()).item()
    >>> restore_random_states(states)
    >>> drawn == (random.random(), np.random.rand(), torch.rand(()).item())
    True
    """
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": {"version": version, "words": torch.from_numpy(np.array(words, np.int64)), "gauss": gauss},
        "numpy": {
            "algorithm": str(algorithm),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # of torch
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put back what :func:`random_states` gave. States of CUDA devices that are not here are left out."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["algorithm"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(states["torch"])
    for device, state in enumerate(states.get("cuda", [])):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


def seed_from(*parts: object) -> None:
    """Seed all global generators by whatever tells this process from others.

    >>> with keeping_random_states():
    ...     seed_from(0, "process", 1)
    ...     first = torch.rand(())
    ...     seed_from(0, "process", 2)
    ...     bool(first == torch.rand(()))
    False
    """
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's as well


def states_from(*parts: object) -> dict[str, Any]:
    """The states that :func:`seed_from` would give; nothing is changed."""
    with keeping_random_states():
        seed_from(*parts)
        return random_states()


@contextlib.contextmanager
def keeping_random_states() -> Iterator[None]:
    """Put all global generators back, at the end, to where they stood."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
