"""The weight in hand, as a plugin's method sees it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.errors import PluginContractError
from weightsmith.events import TrainingState
from weightsmith.shards import Part, gather, is_sharded, own_part, part_of
from weightsmith.tensors import is_small, row_length, unit_dims, unit_view
from weightsmith.weights import Weight

__all__ = ["Sharding", "Site"]


class Site:
    """Where a plugin's method stands: one weight, at one point of the run. Read-only.

    Outside a trainer, :meth:`alone` makes one for any tensor.
    """

    unit_dims: tuple[int, ...]
    """The axes inside one unit (:mod:`weightsmith.tensors`): ``(1, 2, 3)`` for a convolution's filters."""

    gates: int
    """Into how many blocks along axis 0 the weight falls: 4 in an LSTM, 3 in a GRU, else 1."""

    def __init__(
        self,
        weight: Weight,
        state: TrainingState,
        optimizer: Optimizer | None,
        seed: str,
        *,
        effective: bool = True,
        sharding: Sharding = "joint",
    ) -> None:
        self._weight = weight
        self._home: Weight | None = None  # while the weight is gathered, as it lies
        self._state = state
        self._optimizer = optimizer
        self._group = _group_of(weight, optimizer)
        self._memory: dict[str, Tensor] = _Memory()
        self._generator: torch.Generator | None = None
        self._seeded_at: int | None = None
        self._seed = f"{seed}|{weight.name}"
        self._parameters: Mapping[str, Tensor] = {}
        self._effective = effective
        self._sharding = sharding
        is_computed = weight.parametrized and effective
        seen = weight.effective_units() if is_computed else unit_view(_outline(weight.raw[0]), weight.layout)
        self._shape = seen.shape
        self.__dict__["unit_dims"] = unit_dims(seen.ndim, weight.layout)
        self.__dict__["gates"] = _gates(weight.layout, weight.leaf)
        self._whole_rows = row_length(seen, self.unit_dims), is_small(seen)
        self._settle_part()

    def _settle_part(self) -> None:
        """Find the part of a sharded weight on which the plugin may act as it lies; else the weight is scattered."""
        is_computed = self._weight.parametrized and self._effective
        part = None if is_computed else part_of(self._weight.raw[0])
        has_whole_units = part is not None and part.axis not in self.unit_dims and self._shape == part.shape
        may_act = {
            "gather": False,
            "units": has_whole_units,
            "joint units": has_whole_units,
            "joint rows": has_whole_units and self.gates == 1,
        }.get(self._sharding, True)
        self._part = part if may_act else None
        self._is_scattered = self._part is None and any(map(is_sharded, self._weight.raw))
        self._row_length, self._is_small = self._whole_rows
        if self._part is not None:
            in_hand, is_plain = own_part(self._weight.raw[0]), self._shape == self._part.shape
            self._row_length = row_length(in_hand, self.unit_dims) if is_plain else 0
            self._is_small = is_small(in_hand)

    @classmethod
    def alone(
        cls,
        weight: Tensor,
        module: nn.Module | None = None,
        *,
        name: str = "weight",
        seed: int = 0,
        part: Part | None = None,
    ) -> Site:
        """A site outside any trainer, for a tensor that ``module`` would own (default: a plain weight), or for a part
        of one.

        >>> Site.alone(torch.ones(4, 3, 5, 5)).unit_dims
        (1, 2, 3)
        """
        parameter = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach(), requires_grad=False)
        owner = module if module is not None else nn.Module()
        site = cls(Weight(name, (), owner, name.rpartition(".")[2], (parameter,)), TrainingState(), None, str(seed))
        if part is not None:
            site._part, site._shape = part, part.shape
        return site

    @property
    def name(self) -> str:
        """The weight's dotted name, without wrappers."""
        return self._weight.name

    @property
    def module(self) -> nn.Module:
        """The module that owns the weight."""
        return self._weight.module

    @property
    def optimizer(self) -> str | None:
        """The name of the optimizer that holds the weight; ``None`` if none does."""
        return self._weight.optimizer

    @property
    def update(self) -> int:
        """The 1-based number of the update in progress, else of the last one; 0 before the first."""
        return self._state.update

    @property
    def epoch(self) -> int:
        """The 1-based epoch in progress; 0 before the first."""
        return self._state.epoch

    @property
    def learning_rate(self) -> Any:
        """The learning rate that the optimizer uses for this weight now; 0.0 if no optimizer holds it."""
        return 0.0 if self._optimizer is None else self._optimizer.param_groups[self._group]["lr"]

    @property
    def gradient(self) -> Tensor | None:
        """The weight's gradient, if it has one now."""
        grad = self._weight.raw[0].grad
        if grad is None and self._home is not None and self._home.raw[0].grad is not None:
            grad = gather(self._home.raw[0].grad)  # only now: most plugins do not ask
        if grad is None or self._part is not None:
            return None if grad is None else own_part(grad)
        return unit_view(grad, self._weight.layout)

    # ---------------------------------------------------------------- sharded weights

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole weight, as plugins see it."""
        return self._shape

    @property
    def is_whole(self) -> bool:
        """Whether the whole weight is in hand, rather than a part of it."""
        return self._part is None

    def part(self, whole: Tensor) -> Tensor:
        """What of a tensor of the whole weight's :attr:`shape` belongs to the part in hand: all of it, unless the
        weight is sharded and its plugin acts on parts."""
        return whole if self._part is None else self._part.of(whole.reshape(self._part.shape))

    def whole(self, part: Tensor) -> Tensor:
        """The whole of a tensor that has the shape of the part in hand; an all-gather, where there are other parts."""
        return part if self._part is None else self._part.gather(part).reshape(self._shape)

    def total(self, here: Tensor) -> Tensor:
        """The sum of a tensor over all parts of the weight: an all-reduce; itself, if the whole weight is in hand."""
        return here if self._part is None else self._part.total(here)

    def most(self, here: Tensor) -> Tensor:
        """As :meth:`total`, the largest, element by element."""
        return here if self._part is None else self._part.most(here)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What the plugin remembers of this weight: its ``init``, then what its method returned last."""
        return MappingProxyType(self._memory)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What a parametrization trains of its own for this weight: what its ``parameters`` gave, as trained since."""
        return MappingProxyType(dict(self._parameters))

    @property
    def generator(self) -> torch.Generator:
        """Random numbers of this plugin, for this weight, at this update.

        The seed is made of the run's seed, the plugin's class, its occurrence among plugins of that class, the weight's
        name and the update: neither the order of layers nor other plugins change the draws.
        """
        device = self._weight.raw[0].device
        if self._generator is None or self._generator.device != device:
            self._generator, self._seeded_at = torch.Generator(device), None
        if self._seeded_at != self._state.window:
            digest = hashlib.blake2b(f"{self._seed}|{self._state.update}".encode(), digest_size=8).digest()
            self._generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            self._seeded_at = self._state.window
        return self._generator

    def _generator_state(self) -> dict[str, Any] | None:
        """Where its random numbers stand; ``None`` if the next window seeds them anew anyway."""
        if self._generator is None or self._seeded_at != self._state.window:
            return None
        return {"window": self._seeded_at, "state": self._generator.get_state()}

    def _restore_generator(self, state: Mapping[str, Any] | None) -> None:
        self._seeded_at = None
        if state is not None:
            self._generator = torch.Generator(self._weight.raw[0].device)
            self._generator.set_state(state["state"].cpu())
            self._seeded_at = state["window"]

    def _having(self, parameters: Mapping[str, Tensor]) -> Site:
        """The same place, with these as :attr:`parameters`."""
        twin = copy.copy(self)
        twin._parameters = parameters
        return twin

    def _reseed(self, seed: str) -> None:
        seed = f"{seed}|{self._weight.name}"
        if seed != self._seed:
            self._seed, self._seeded_at = seed, None

    def _begin(self, entries: Mapping[str, Tensor]) -> None:
        """Start to remember."""
        if not isinstance(entries, Mapping) or not all(isinstance(value, Tensor) for value in entries.values()):
            raise PluginContractError(f"init returned {entries!r}: return a dict of name to tensor")
        self._memory.update({key: value.detach().clone() for key, value in entries.items()})

    def _forget(self) -> None:
        """Remember nothing any more."""
        self._memory.clear()

    def _entries(self) -> dict[str, Tensor]:
        """What is remembered, to be saved: what follows the part in hand, as the part of something whole."""
        part = self._part
        return {
            key: entry if part is None or not self._follows(entry, part.size) else part.joined(entry)
            for key, entry in self._memory.items()
        }

    def _here(self, entry: Tensor) -> Tensor:
        """What of an entry that was saved belongs here: the part in hand, if it was saved as something whole."""
        part = self._part
        if is_sharded(entry):
            return own_part(entry)
        seen = self._shape if part is None else part.shape
        if entry.shape in (self._shape, self._weight.raw[0].shape) and entry.shape != seen:
            entry = entry.reshape(seen)  # its axes were seen otherwise when it was saved
        if part is None or not self._follows(entry, part.shape[part.axis]):
            return entry
        return entry.narrow(part.axis, part.start, part.size)

    def _room(self, outline: Tensor) -> Tensor:
        """An empty tensor for a saved entry, of which the part in hand alone is held here if it follows the weight."""
        part = self._part
        if part is None or not self._follows(outline, part.shape[part.axis]):
            return torch.empty(outline.shape, dtype=outline.dtype)
        here = part.of(torch.empty_like(outline, device="meta"))
        return part.joined(torch.empty(here.shape, dtype=outline.dtype, device=part.like.device))

    def _follows(self, entry: Tensor, size: int) -> bool:
        """Whether an entry has the axes of the weight, and so many indices along that which is sharded."""
        part = self._part
        return part is not None and entry.ndim == len(part.shape) and entry.shape[part.axis] == size

    def _remember(self, entries: Mapping[str, Tensor]) -> None:
        """Keep what a method returned beside its result, in place where it fits."""
        unknown = sorted(entries.keys() - self._memory.keys())
        if unknown:
            raise PluginContractError(
                f"the state returned has the entries {unknown}, which init did not make: it made {sorted(self._memory)}"
            )
        for key, value in entries.items():
            held = self._memory[key]
            if held.shape == value.shape and held.dtype == value.dtype:
                held.copy_(value)
            else:
                self._memory[key] = value.detach().clone()

    def _follow(self, weight: Weight, optimizer: Optimizer | None) -> None:
        """Go on with the same weight after it was parametrized, or joined an optimizer."""
        self._weight = weight
        self._optimizer = optimizer
        self._group = _group_of(weight, optimizer)
        self._settle_part()

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
            return
        raise AttributeError(
            f"a Site is read-only: cannot set {name!r}; a plugin remembers through init and its result"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:
        return self  # it stands for a place in a run, of which a copied model is no part

    def __repr__(self) -> str:
        return f"Site({self.name!r}, update={self.update}, epoch={self.epoch})"


class _Memory(dict[str, Tensor]):
    """What a plugin remembers of a weight."""

    def __missing__(self, key: str) -> Tensor:
        there = f"it remembers {', '.join(self)}" if self else "it remembers nothing"
        raise PluginContractError(f"site.state has no {key!r}, for init did not return it: {there}")


Sharding: TypeAlias = Literal["gather", "units", "values", "joint", "joint units", "joint rows"]
"""What a plugin needs of a sharded weight: all of it; or the part at hand, since it treats every unit, or every value,
on its own; or since it asks for what it needs of the other parts, of the other whole units, or of the other rows of a
single matrix, itself."""


def _outline(tensor: Tensor) -> Tensor:
    """A tensor of this shape, for what looks at shapes alone."""
    return torch.empty(tensor.shape, device="meta") if is_sharded(tensor) else tensor


def _group_of(weight: Weight, optimizer: Optimizer | None) -> int:
    if optimizer is None:
        return 0
    raw = set(map(id, weight.raw))
    groups = [group["params"] for group in optimizer.param_groups]
    return next((i for i, group in enumerate(groups) if any(id(parameter) in raw for parameter in group)), 0)


def _gates(module: nn.Module | None, leaf: str = "weight") -> int:
    """Into how many equal blocks along axis 0 a weight of a module falls: the gates of a recurrent layer, else 1 (as
    for an LSTM's projection, ``weight_hr_l0``)."""
    count = next((count for kind, count in _GATES.items() if isinstance(module, kind)), 1)
    return 1 if leaf.startswith("weight_hr") else count


_GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
