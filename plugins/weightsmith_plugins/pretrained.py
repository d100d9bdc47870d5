"""Weights that start from a file: another training's, renamed and adapted where the model has changed."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from weightsmith import ConfigurationError, Initializer, Selector, Site, Trainer, everything
from weightsmith.binding import Binding
from weightsmith.files import read_tensors
from weightsmith.plugin import Subscription
from weightsmith.selection import select
from weightsmith.shards import gather
from weightsmith.spelling import nearest
from weightsmith.tensors import unit_view
from weightsmith.weights import Weight, inventory, persistent_buffers

__all__ = ["Pretrained", "PretrainedReport"]

logger = logging.getLogger(__name__)

ADAPTATIONS = ("refuse", "leave", "overlap", "inputs")


@dataclass(frozen=True)
class PretrainedReport:
    """What a file gave to a model, by the model's names.

    Attributes:
        loaded: weights and buffers taken as they are.
        adapted: weights taken in another shape, each with what was done.
        left: weights and buffers that start as they were, each with the reason.
        unused: entries of the file, by their names after renaming, that nothing took.
    """

    loaded: tuple[str, ...]
    adapted: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} loaded as they are"]
        lines += [f"adapted: {name} ({how})" for name, how in self.adapted]
        lines += [f"left as it was: {name} ({why})" for name, why in self.left]
        lines += [f"unused: {name}" for name in self.unused]
        return "\n".join(lines)


class Pretrained(Initializer):
    """w ← the tensor of the same name in a file. Batch norm's running statistics, and whatever else the modules of the
    selected weights save, come along.

    The file is looked at when the plugin is attached: whatever does not fit is said before anything runs, and no weight
    is touched unless all can be. :meth:`report` says what was loaded, adapted, left and unused; it is logged as well.

    Args:
        path: a ``.safetensors`` file, or one that :func:`torch.save` wrote, of which only tensors are read: no file can
            run code. Names inside nested dicts are joined by dots.
        rename: pairs of a regular expression and its replacement, applied in turn to the names in the file, as
            :func:`re.sub` does: ``[["^module\\\\.", ""]]``. Default none.
        adapt: what to do with a tensor of another shape; one word for all, or pairs of a glob and a word, of which the
            first that matches counts:

            - ``"refuse"`` (default): an error.
            - ``"leave"``: the weight starts as it was.
            - ``"overlap"``: what both shapes have is loaded, the rest starts as it was; for other numbers of classes.
            - ``"inputs"``: for another number of input channels. Each new channel gets Σ over old channels / number of
              new ones, so that an input that is equal in all channels gives what it gave before.
        strict: whether a selected weight that the file does not have is an error. Default true.

    Raises:
        ConfigurationError: the file cannot be read safely or holds no tensor that is selected; a weight is missing, of
            another shape, or not finite in the file; two entries are renamed to one name.
    """

    default_where: ClassVar[Selector] = everything

    path: str
    rename: tuple[tuple[str, str], ...] = ()
    adapt: str | tuple[tuple[str, str], ...] = "refuse"
    strict: bool = True

    def validate(self) -> None:
        for pair in self.rename:
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
                raise ConfigurationError(f"{self!r}: rename takes pairs [expression, replacement], not {pair!r}")
            try:
                re.compile(pair[0])
            except re.error as error:
                raise ConfigurationError(f"{self!r}: {pair[0]!r} is no regular expression: {error}") from None
        for pair in self._rules():
            if not (isinstance(pair, tuple) and len(pair) == 2 and pair[1] in ADAPTATIONS):
                raise ConfigurationError(
                    f"{self!r}: adapt takes one of {', '.join(ADAPTATIONS)}, or pairs [glob, one of these]"
                )

    def report(self, trainer: Trainer) -> PretrainedReport:
        """What it loads into the models of a trainer, or has loaded."""
        weights = select(self.where, inventory(trainer.models, trainer.optimizers))
        return self._read().report(weights, trainer)

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        """The tensor of the site's name in the file, adapted to the weight's shape."""
        entries = self._read()
        name = entries.name_of((site.name,))
        if name is None:
            return entries.missing(site.name, weight)
        return entries.fitted(site.name, name, weight, site)[0]

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        yield from super().subscriptions(trainer)
        self.report(trainer)

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        entries = self._read()
        report = entries.report(binding.weights, binding.trainer)
        changed = []
        for weight, site in binding.all_targets():  # of which the report has found that all fit
            value = entries.value(weight, site)
            weight.assign(value)
            if weight.parametrized and (misfit := weight.misfit(value)):
                changed.append((weight.name, f"its parametrization cannot give the value in the file: {misfit}"))
        for name, buffer in entries.buffers(binding.weights, binding.trainer):
            buffer.copy_(entries.tensors[name])
        report = replace(report, adapted=(*report.adapted, *changed))
        logger.log(logging.WARNING if report.left or changed else logging.INFO, "%r:\n%s", self, report)

    def method_for(self, name: str) -> str:
        """What ``adapt`` says of a weight."""
        return next((method for glob, method in self._rules() if fnmatch.fnmatchcase(name, glob)), "refuse")

    def _rules(self) -> Sequence[tuple[str, str]]:
        return [("*", self.adapt)] if isinstance(self.adapt, str) else self.adapt

    def _read(self) -> Entries:
        renamed: dict[str, Tensor] = {}
        applied = Counter({expression: 0 for expression, _ in self.rename})
        for name, tensor in read_tensors(self.path).items():
            new = name
            for expression, replacement in self.rename:
                new, count = re.subn(expression, replacement, new)
                applied[expression] += count
            if new in renamed:
                raise ConfigurationError(f"{self!r}: two entries of the file are renamed to {new!r}")
            renamed[new] = tensor
        idle = [expression for expression, count in applied.items() if not count]
        if idle:
            logger.warning("%r: %s in rename matches no name in the file", self, ", ".join(map(repr, idle)))
        return Entries(self, renamed)


class Entries:
    """The tensors of a file under their new names, and how they fit a model."""

    def __init__(self, plugin: Pretrained, tensors: dict[str, Tensor]) -> None:
        self.plugin = plugin
        self.tensors = tensors

    def name_of(self, names: Sequence[str]) -> str | None:
        """The first of a weight's names that the file has."""
        return next((name for name in names if name in self.tensors), None)

    def value(self, weight: Weight, site: Site) -> Tensor:
        """What the weight starts from, as plugins see it."""
        name, start = self.name_of(weight.names), _start(weight)
        return start if name is None else self.fitted(weight.name, name, start, site)[0]

    def fitted(self, name: str, entry: str, start: Tensor, site: Site) -> tuple[Tensor, str]:
        """An entry in the shape of the weight, and what was done for it (``""``: nothing)."""
        found = self.tensors[entry]
        self._refuse_non_finite(entry, start.dtype)
        seen = unit_view(found, site.module)
        if seen.shape == start.shape:
            return seen.to(start), ""
        method = self.plugin.method_for(name)
        shapes = f"{tuple(seen.shape)} in the file, {tuple(start.shape)} here"
        input_axis = next(iter(site.unit_dims), 0)
        misfit = _misfit(method, seen.shape, start.shape, input_axis)
        if method == "inputs" and isinstance(site.module, (nn.Embedding, nn.EmbeddingBag)):
            misfit = "an embedding has no input channels: adapt='overlap' keeps what both have"
        if misfit:
            raise ConfigurationError(f"{self.plugin!r}: weight {name!r} is {shapes}: {misfit}")
        return _adapted(method, seen.to(start), start, input_axis, site.gates), f"{method}: {shapes}"

    def _refuse_non_finite(self, entry: str, dtype: torch.dtype) -> None:
        found = self.tensors[entry]
        if found.is_complex() != dtype.is_complex or not found.to(dtype).isfinite().all():
            raise ConfigurationError(f"{self.plugin!r}: {entry!r} in the file is not finite, as {dtype}")

    def missing(self, name: str, start: Tensor) -> Tensor:
        """What a weight starts from that the file does not have: as it is, or an error that says so."""
        if self.plugin.strict:
            raise ConfigurationError(
                f"{self.plugin!r}: the file has no {name!r}{self._hint(name)} Rename the file's entries with `rename`, "
                "leave the weight out with `where`, or let it start as it is with strict=False"
            )
        return start.clone()

    def _hint(self, name: str) -> str:
        module, _, leaf = name.rpartition(".")
        computed = f"{module}.parametrizations.{leaf}.".removeprefix(".")
        if any(entry.startswith(computed) for entry in self.tensors):
            return (
                ", but what a parametrization computes it from: save weightsmith.plain_state_dict(model) of that "
                "model, or load the file into it with load_state_dict."
            )
        prefixes = [entry.removesuffix(name) for entry in self.tensors if entry.endswith(f".{name}")]
        if prefixes:
            pair = [f"^{re.escape(prefixes[0])}", ""]
            return f", but {prefixes[0] + name!r}: give rename=[{pair}]."
        return f"; it has {', '.join(map(repr, list(self.tensors)[:3]))}, and {max(len(self.tensors) - 3, 0)} more."

    def report(self, weights: Sequence[Weight], trainer: Trainer) -> PretrainedReport:
        """What these weights take, before anything is written.

        Raises:
            ConfigurationError: something does not fit.
        """
        self._refuse_idle_rules(weights)
        loaded, adapted, left, used = [], [], [], Counter[str]()
        for weight in weights:
            entry, start = self.name_of(weight.names), _start(weight)
            if entry is None:
                self.missing(weight.name, start)
                left.append((weight.name, "the file does not have it"))
                continue
            used.update(n for n in weight.names if n == entry or _equal(self.tensors, n, entry))
            _, how = self.fitted(
                weight.name, entry, start, Site.alone(gather(weight.effective().detach()), weight.module)
            )
            if how.startswith("leave"):
                left.append((weight.name, how))
            elif how:
                adapted.append((weight.name, how))
            else:
                loaded.append(weight.name)
        if not loaded and not adapted:
            raise ConfigurationError(f"{self.plugin!r}: nothing in the file is loaded{self._hint(weights[0].name)}")
        for name in self._companions(weights, trainer):
            if name in self.tensors:
                used[name] += 1
                loaded.append(name)
            else:
                left.append((name, "the file does not have it"))
        list(self.buffers(weights, trainer))  # refuses what does not fit
        unused = tuple(name for name in self.tensors if not used[name])
        return PretrainedReport(tuple(loaded), tuple(adapted), tuple(left), unused)

    def _refuse_idle_rules(self, weights: Sequence[Weight]) -> None:
        names = [name for weight in weights for name in weight.names]
        for glob, _ in () if isinstance(self.plugin.adapt, str) else self.plugin.adapt:
            if not fnmatch.filter(names, glob):
                raise ConfigurationError(
                    f"{self.plugin!r}: {glob!r} in adapt matches no weight{nearest(glob.rstrip('.*'), names)}"
                )

    def buffers(self, weights: Sequence[Weight], trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
        """The buffers that come along, if the file has them."""
        for name, buffer in self._companions(weights, trainer).items():
            if name in self.tensors:
                if self.tensors[name].shape != buffer.shape:
                    raise ConfigurationError(
                        f"{self.plugin!r}: buffer {name!r} is {tuple(self.tensors[name].shape)} in the file, "
                        f"{tuple(buffer.shape)} here: leave its module's weights out with `where`"
                    )
                self._refuse_non_finite(name, buffer.dtype)
                yield name, buffer

    def _companions(self, weights: Sequence[Weight], trainer: Trainer) -> dict[str, Tensor]:
        """All buffers, for all weights; else those of a module that holds a selected weight or stands beside one."""
        buffers = persistent_buffers(trainer.models)
        if self.plugin.where == everything:
            return buffers
        homes = {_parent(name) for weight in weights for name in weight.names}
        beside = {_parent(home) for home in homes}
        holders = _holders(trainer)
        return {
            name: buffer
            for name, buffer in buffers.items()
            if (_parent(name) in homes if _parent(name) in holders else _parent(_parent(name)) in beside)
        }


def _start(weight: Weight) -> Tensor:
    """What a weight starts from as it was made, whole."""
    return unit_view(gather(weight.effective().detach()), weight.layout)


def _equal(tensors: dict[str, Tensor], name: str, other: str) -> bool:
    return name in tensors and torch.equal(tensors[name], tensors[other])


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _holders(trainer: Trainer) -> set[str]:
    """The modules that hold a weight of their own."""
    return {_parent(name) for weight in inventory(trainer.models, {}) for name in weight.names}


def _misfit(method: str, found: Sequence[int], start: Sequence[int], input_axis: int) -> str:
    """Why a tensor of shape ``found`` cannot be adapted to ``start`` in this way; ``""`` if it can."""
    if method == "refuse":
        return "say how to adapt it: adapt='overlap' (other classes), 'inputs' (other input channels) or 'leave'"
    if method == "overlap" and len(found) != len(start):
        return "'overlap' needs the same number of axes"
    same_but_inputs = len(found) == len(start) >= 2 and all(
        a == b for axis, (a, b) in enumerate(zip(found, start, strict=True)) if axis != input_axis
    )
    if method == "inputs" and not same_but_inputs:
        return "'inputs' adapts the number of input channels, and nothing else"
    return ""


def _adapted(method: str, found: Tensor, start: Tensor, input_axis: int, gates: int) -> Tensor:
    if gates > 1 and found.shape[0] % gates == 0:  # each gate of a recurrent layer on its own
        pairs = zip(found.chunk(gates), start.chunk(gates), strict=True)
        return torch.cat([_adapted(method, old, new, input_axis, 1) for old, new in pairs])
    if method == "inputs":
        return (found.sum(input_axis, keepdim=True) / start.shape[input_axis]).expand(start.shape).clone()
    result = start.clone()
    if method == "overlap":
        shared = tuple(slice(min(a, b)) for a, b in zip(found.shape, start.shape, strict=True))
        result[shared] = found[shared]
    return result
