"""Edits of the weight after the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import (
    ConfigurationError,
    Initializer,
    Selector,
    Site,
    Trainer,
    UnsupportedWeightError,
    WeightEditor,
    WeightEvents,
    matrices,
)
from weightsmith.binding import Binding
from weightsmith.plugin import Subscription
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype, unit_norms
from weightsmith.weights import Weight

from weightsmith_plugins.dormancy import are_dormant
from weightsmith_plugins.initializers import KaimingUniform

__all__ = ["Decay", "GradientStep", "Lookahead", "Perturb", "ResetDormant", "Rewind", "ShrinkPerturb"]


class GradientStep(WeightEditor):
    """w ← w − rate · g: a plain step along the gradient, beside whatever the optimizer does.

    Args:
        rate: the step's length per unit of gradient.

    >>> GradientStep(0.5)(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.5000])
    """

    sharding: ClassVar[Sharding] = "values"

    rate: float

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return weight - self.rate * gradient


class Decay(WeightEditor):
    """w ← (1 − rate) · w after every update, independent of the learning rate.

    Hanson & Pratt (1988), "Comparing biases for minimal network construction with back-propagation".

    Args:
        rate: the share that is lost per update, from 0 to 1.

    >>> Decay(0.1)(torch.tensor([1.0]))
    tensor([0.9000])
    """

    sharding: ClassVar[Sharding] = "values"

    rate: float

    def validate(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigurationError(f"{self!r}: rate must be from 0 to 1")

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return weight * (1 - self.rate)


class Perturb(WeightEditor):
    """w ← w + ε with ε ~ N(0, std²), independent for every weight.

    An, G. (1996), "The effects of adding noise during backpropagation training on a generalization performance".

    Args:
        std: standard deviation of the noise, at least 0.

    >>> Perturb(0.0)(torch.tensor([1.0]))
    tensor([1.])
    """

    sharding: ClassVar[Sharding] = "values"

    std: float

    def validate(self) -> None:
        if not self.std >= 0:
            raise ConfigurationError(f"{self!r}: std must be at least 0")

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        dtype = accurate_dtype(weight.dtype)
        noise = torch.randn(site.shape, generator=site.generator, dtype=dtype, device=weight.device)
        return weight + (self.std * site.part(noise)).to(weight.dtype)


class ShrinkPerturb(WeightEditor):
    """w ← shrink · w + ε with ε ~ N(0, std²): forgets a little, and finds its way again; usually with ``every``.

    Ash & Adams (2020), "On warm-starting neural network training", arXiv:1910.08475.

    Args:
        shrink: what is kept of the weight, from 0 to 1.
        std: standard deviation of the noise, at least 0.

    >>> ShrinkPerturb(0.5, 0.0)(torch.tensor([1.0]))
    tensor([0.5000])
    """

    sharding: ClassVar[Sharding] = "values"

    shrink: float
    std: float

    def validate(self) -> None:
        if not (0 <= self.shrink <= 1 and self.std >= 0):
            raise ConfigurationError(f"{self!r}: shrink must be from 0 to 1, and std at least 0")

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return Perturb(self.std).edit(weight * self.shrink, gradient, site)


class Lookahead(WeightEditor):
    """slow ← slow + rate · (w − slow); w ← slow, every ``every`` updates: k steps forward, one step back.

    Zhang et al. (2019), "Lookahead optimizer: k steps forward, 1 step back", arXiv:1907.08610, algorithm 1; their k is
    the kind's ``every``. The slow weights begin where the run begins.

    Args:
        rate: the step of the slow weights, from 0 to 1. Default 0.5.

    >>> Lookahead(0.5, every=5)
    Lookahead(every=5)
    """

    sharding: ClassVar[Sharding] = "values"
    remembers_start: ClassVar[bool] = True

    rate: float = 0.5

    def validate(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigurationError(f"{self!r}: rate must be from 0 to 1")

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"slow": weight}

    def edit(  # type: ignore[override]
        self, weight: Tensor, gradient: Tensor, site: Site
    ) -> tuple[Tensor, dict[str, Tensor]]:
        slow = torch.lerp(site.state["slow"], weight, self.rate)
        return slow, {"slow": slow}


class Rewind(WeightEditor):
    """w ← w as it was after update ``to``, with clean optimizer state, whenever it acts: say when by ``every`` or
    ``after``. Weights that a pruning keeps at zero stay zero, since constraints have the last word.

    Frankle et al. (2020), "Linear mode connectivity and the lottery ticket hypothesis", arXiv:1912.05671.

    Args:
        to: the update whose end it goes back to; 0 (default) is where the run began, or where the plugin was attached.
            Until then it does not act.

    Raises:
        ConfigurationError: it is attached when update ``to`` is over.

    >>> Rewind(to=100, every=1000)
    Rewind(to=100, every=1000)
    """

    sharding: ClassVar[Sharding] = "values"
    remembers_start: ClassVar[bool] = True

    to: int = 0

    def validate(self) -> None:
        if self.to < 0:
            raise ConfigurationError(f"{self!r}: to must be at least 0")
        if self.scheduled:
            raise ConfigurationError(f"{self!r}: to must be a number, not a schedule")

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"kept": weight}

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return site.state["kept"].clone()

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)
        yield self.at or self.event, binding.run
        over = max(trainer.state.updates.values())
        if self.to and over >= self.to:
            raise ConfigurationError(
                f"{self!r}: the run is at update {over} already: attach it before update {self.to}"
            )
        if self.to:
            yield WeightEvents.UPDATE_COMPLETED(once=self.to), lambda: self._keep(binding)

    @torch.no_grad()
    def _keep(self, binding: Binding) -> None:
        self._prepare(binding.targets())
        for target in binding.targets():
            target.site.state["kept"].copy_(target.tensor)

    def act(self, binding: Binding) -> None:
        counts = binding.trainer.state.updates
        if all(counts[t.site.optimizer] > self.to for t in binding.targets() if t.site.optimizer is not None):
            super().act(binding)
            for target in binding.targets():
                binding.forget_moments(target)


class ResetDormant(WeightEditor):
    """Draws units anew that no longer learn: those whose mean |gradient| over the last ``interval`` updates is at
    most ``threshold`` times their layer's mean. Their optimizer state is cleaned; the next layer stays as it is.

    Sokar et al. (2023), "The dormant neuron phenomenon in deep reinforcement learning", arXiv:2302.12902, with
    gradients in place of activations, which a weight's plugin does not see: a unit that is silent for every input
    gets none. Biases stay as they are: a unit that its bias alone keeps silent is drawn anew at every look.

    Args:
        threshold: the share of the layer's mean at or below which a unit is dormant, at least 0. Default 0.025.
        interval: updates between two looks, at least 1. Default 1000.
        initializer: how a unit is drawn anew. Default ``KaimingUniform(nonlinearity="relu")``.

    >>> ResetDormant(0.1, interval=500)
    ResetDormant(threshold=0.1, interval=500)
    """

    sharding: ClassVar[Sharding] = "joint units"
    default_where: ClassVar[Selector] = matrices

    threshold: float = 0.025
    interval: int = 1000
    initializer: Initializer = KaimingUniform(nonlinearity="relu")

    def validate(self) -> None:
        if not (self.threshold >= 0 and self.interval >= 1):
            raise ConfigurationError(f"{self!r}: threshold must be at least 0, and interval at least 1")

    def refuse(self, weights: Sequence[Weight]) -> None:
        super().refuse(weights)
        for weight in weights:
            if weight.parametrized or weight.is_part:
                raise UnsupportedWeightError(
                    f"{self!r}: weight {weight.name!r} is parametrized, so that drawing its raw parameter anew would "
                    "not draw what the layer computes with: leave it out with `where`"
                )

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        units = unit_norms(weight, site.unit_dims)
        reset = torch.zeros_like(units, dtype=torch.bool)
        return {"activity": torch.zeros_like(units), "reset": reset, "seen": torch.tensor(0)}

    def edit(  # type: ignore[override]
        self, weight: Tensor, gradient: Tensor, site: Site
    ) -> tuple[Tensor, dict[str, Tensor]]:
        activity = site.state["activity"] + unit_norms(gradient, site.unit_dims, order=1.0)
        seen = site.state["seen"] + 1
        if seen < self.interval:
            reset = torch.zeros_like(activity, dtype=torch.bool)
            return weight.clone(), {"activity": activity, "reset": reset, "seen": seen}
        reset = are_dormant(activity, self.threshold, site)
        if not site.total(activity.sum()) > 0:  # a layer out of use is left alone
            reset = torch.zeros_like(reset)
        drawn = site.part(self.initializer.draw(site.whole(weight), site))
        renewed = torch.where(reset, drawn, weight)
        return renewed, {"activity": torch.zeros_like(activity), "reset": reset, "seen": torch.tensor(0)}

    def act(self, binding: Binding) -> None:
        super().act(binding)
        for target in binding.targets():
            if target.site.state["seen"] == 0 and target.site.state["reset"].any():
                binding.forget_moments(target, target.site.state["reset"])
