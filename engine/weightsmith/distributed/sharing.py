"""Data shared out among processes: the same batches as on one, of which each takes its samples."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Sampler

from weightsmith.batches import length_of
from weightsmith.distributed.processes import from_first, gathered_objects, is_distributed, is_first, rank, world_size
from weightsmith.errors import ConfigurationError

__all__ = ["share", "warn_of_same_batch", "warn_of_unshared"]

logger = logging.getLogger(__name__)


def share(batches: Any, *, even: bool = True) -> Any:
    """This process's share of a torch ``DataLoader``, or of a list of batches: the batches are those of one process, in
    the order that the first process draws, and process r of n takes the samples r, r + n, r + 2 · n … of each. One
    process gets what was given.

    The length is that of the whole: the number of batches. A pass begins when all processes begin one.

    Args:
        batches: a loader, whose batch size is that of all processes together; or a list of batches, tensors that have
            samples along their first axis, in tuples, lists or dicts.
        even: whether all processes get the same number of samples, as in training, where each one's mean counts alike:
            the size of a batch must be a multiple of the number of processes, but for the last one, which is filled up
            with its own first samples. Without, for evaluation, no sample comes twice, and a last batch that is too
            small for all joins the one before it. Default true.

    Raises:
        ConfigurationError: the batches cannot be shared out; the message says what to do instead.
    """
    if not is_distributed():
        return batches
    if isinstance(batches, DataLoader):
        return _shared_loader(batches, even)
    if isinstance(batches, (list, tuple)):
        return _shared_list(batches, even)
    raise ConfigurationError(
        f"share() takes a torch DataLoader or a list of batches, not a {type(batches).__name__}: let this give each "
        "process other samples by itself (weightsmith.distributed has rank() and world_size())"
    )


def own_indices(batch: Sequence[Any], *, even: bool, is_last: bool) -> Sequence[Any]:
    """Those of a batch's indices that are this process's."""
    processes = world_size()
    missing = -len(batch) % processes
    if even and missing and not is_last:
        raise ConfigurationError(
            f"a batch of {len(batch)} cannot be shared out evenly among {processes} processes: give a batch size, for "
            f"all of them together, that is a multiple of {processes}"
        )
    if even:
        batch = [*batch, *itertools.islice(itertools.cycle(batch), missing)]
    elif len(batch) < processes:
        raise ConfigurationError(f"a batch of {len(batch)} is too small to share out among {processes} processes")
    return batch[rank() :: processes]


# -------------------------------------------------------------------- loaders


def _shared_loader(loader: DataLoader[Any], even: bool) -> DataLoader[Any]:
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            "share() cannot tell the samples of an IterableDataset apart: let it give each process its own, by rank() "
            "and world_size() of weightsmith.distributed, and do not share it"
        )
    if type(loader) is not DataLoader:
        raise ConfigurationError(f"share() takes torch's own DataLoader, not a {type(loader).__name__}")
    if loader.batch_sampler is None:
        raise ConfigurationError("share() needs batches of several samples: give the DataLoader a batch_size")
    if length_of(loader.batch_sampler) is None:
        raise ConfigurationError(
            f"share() shares out a whole pass at once, and the DataLoader's {type(loader.batch_sampler).__name__} does "
            "not say how many batches that is: give it, or its sampler, a __len__; one that never ends can give each "
            "process its own samples by rank() and world_size() of weightsmith.distributed, unshared"
        )
    if even and loader.batch_size is not None and loader.batch_size % world_size():
        own_indices(range(loader.batch_size), even=True, is_last=False)  # refuses it
    return DataLoader(
        loader.dataset,
        batch_sampler=_Shares(loader.batch_sampler, even),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )


class _Shares(Sampler[Any]):
    """The indices of each batch that are this process's.

    Attributes:
        sampler: what the loader's own batches are made from; it and :attr:`generator` stand where a loader has them,
            so that a run that goes on finds their states.
    """

    def __init__(self, batches: Any, even: bool) -> None:
        self._batches = batches
        self._even = even
        self.sampler = getattr(batches, "sampler", None)
        self.generator = getattr(batches, "generator", None)

    def __iter__(self) -> Iterator[Any]:
        drawn = from_first(list(self._batches) if is_first() else [])
        if not self._even and len(drawn) > 1 and len(drawn[-1]) < world_size():
            last = drawn.pop()
            drawn[-1] = [*drawn[-1], *last]
        for place, batch in enumerate(drawn, 1):
            yield own_indices(batch, even=self._even, is_last=place == len(drawn))

    def __len__(self) -> int:
        return len(self._batches) - self._joins_last()

    def _joins_last(self) -> bool:
        """Whether the last batch will have joined the one before it, as far as that is known before it is drawn."""
        batches = self._batches
        if self._even or not isinstance(batches, BatchSampler) or batches.drop_last or len(batches) < 2:
            return False
        samples: Any = batches.sampler
        return 0 < len(samples) % batches.batch_size < world_size()


# -------------------------------------------------------------------- lists


def _shared_list(batches: Sequence[Any], even: bool) -> list[Any]:
    return [_own_samples(batch, even, is_last=place == len(batches)) for place, batch in enumerate(batches, 1)]


def _own_samples(batch: Any, even: bool, *, is_last: bool) -> Any:
    leaves = tree_leaves(batch)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves):
        raise ConfigurationError(
            "share() takes lists of batches that are tensors, in tuples, lists or dicts: others can "
            "come from a DataLoader"
        )
    if len({len(leaf) for leaf in leaves}) > 1:
        raise ConfigurationError("share() finds tensors with different numbers of samples in a batch of the list")
    chosen = own_indices(range(len(leaves[0])), even=even, is_last=is_last)
    return tree_map(lambda tensor: tensor[torch.as_tensor(list(chosen), device=tensor.device)], batch)


# -------------------------------------------------------------------- a look at what the processes were given


def warn_of_same_batch(batch: Any) -> None:
    """Warn where all processes have the very same batch: together they do the work of one. Every process must ask."""
    if not is_distributed():
        return
    told = gathered_objects(_digest(batch))
    if is_first() and told[0] is not None and all(each == told[0] for each in told):
        logger.warning(
            "all %d processes were given the very same first batch, so together they do what one would: give run() "
            "share(batches), of weightsmith.distributed, or launch.share(batches); if the step takes each process's "
            "part by itself, or that is meant, all is well",
            world_size(),
        )


def warn_of_unshared(data: Any) -> None:
    """Warn where a loader, as it stands, gives each process all samples, in an order of its own."""
    if not is_distributed() or not is_first() or type(data) is not DataLoader:
        return
    if not isinstance(data.batch_sampler, _Shares) and not isinstance(data.sampler, DistributedSampler):
        logger.warning(
            "each of %d processes goes through all of the DataLoader, so that an epoch takes every sample %d times: "
            "give run() share(loader), of weightsmith.distributed, or launch.share(loader); if its dataset is this "
            "process's own, all is well",
            world_size(),
            world_size(),
        )


def _digest(batch: Any) -> list[Any] | None:
    """What tells batches apart; ``None`` for those without tensors."""
    tensors = [
        leaf.detach() for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.layout is torch.strided
    ]
    return [(tuple(t.shape), *_sums(t)) for t in tensors] or None


def _sums(tensor: Tensor) -> tuple[float, float]:
    values = tensor.reshape(-1).double() if not tensor.is_complex() else torch.view_as_real(tensor).reshape(-1).double()
    weighted = values * torch.arange(1, len(values) + 1, device=values.device)
    return float(values.sum()), float(weighted.sum())
