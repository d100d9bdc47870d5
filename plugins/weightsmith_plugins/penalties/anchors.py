"""Penalties on the distance from where training began: for going on from a pretrained model without forgetting it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from weightsmith import ConfigurationError, Penalty, Site
from weightsmith.distributed import total_over_processes
from weightsmith.evaluation import evaluating
from weightsmith.files import read_tensors
from weightsmith.shards import is_sharded
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype, add_differences_, unit_view
from weightsmith.weights import inventory

from weightsmith_plugins.penalties.sizes import require_non_negative

__all__ = ["L2SP", "ElasticConsolidation", "fisher_information"]


class L2SP(Penalty):
    """strength · Σ(w − w⁰)², with w⁰ the weight as the run began, after the initializers.

    Li, Grandvalet & Davoine (2018), "Explicit inductive bias for transfer learning with convolutional networks",
    arXiv:1802.01483. Gradient 2 · strength · (w − w⁰); proximal map (w + 2 · step · strength · w⁰) / (1 + 2 · step ·
    strength).

    Args:
        strength: cost per unit of squared distance, at least 0.

    >>> L2SP(0.1)(torch.tensor([[1.0, -2.0]]))  # outside a run, a weight begins where it is
    tensor(0.)
    """

    sharding: ClassVar[Sharding] = "values"
    remembers_start: ClassVar[bool] = True

    strength: float

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"start": weight}

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * (weight - site.state["start"]).square().sum()

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        return (2 * self.strength) * (weight - site.state["start"])

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        add_differences_(gradients, weights, [site.state["start"] for site in sites], 2 * self.strength)

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        pull = 2 * step * self.strength
        return (weight + pull * site.state["start"]) / (1 + pull)


class ElasticConsolidation(Penalty):
    """strength / 2 · ΣF(w − w⁰)²: keeps what an earlier task needed. w⁰ is the weight as the run began, F the Fisher
    information of that task, which says how much it needed each weight.

    Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks", arXiv:1612.00796, equation 3.
    Gradient strength · F(w − w⁰); proximal map (w + step · strength · F · w⁰) / (1 + step · strength · F).

    Args:
        strength: cost per unit of F(w − w⁰)² / 2, at least 0.
        fisher: a file of :func:`fisher_information`, F under each weight's name, not negative.

    Raises:
        ConfigurationError: the file has no F of this shape for a selected weight, or a negative or non-finite one.
    """

    sharding: ClassVar[Sharding] = "values"
    remembers_start: ClassVar[bool] = True

    strength: float
    fisher: str

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        found = read_tensors(self.fisher)
        if site.name not in found:
            raise ConfigurationError(f"{self!r}: the file has nothing for weight {site.name!r}")
        fisher = unit_view(found[site.name], site.module).to(weight)
        if fisher.shape != site.shape or not (fisher >= 0).all() or fisher.isinf().any():
            raise ConfigurationError(
                f"{self!r}: for weight {site.name!r} of shape {tuple(site.shape)} the file holds shape "
                f"{tuple(fisher.shape)}, or values that are negative or not finite"
            )
        return {"start": weight, "fisher": site.part(fisher)}

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return (self.strength / 2) * (site.state["fisher"] * (weight - site.state["start"]).square()).sum()

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * site.state["fisher"] * (weight - site.state["start"])

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        starts, needs = [site.state["start"] for site in sites], [site.state["fisher"] for site in sites]
        add_differences_(gradients, weights, starts, self.strength, needs)

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        pull = step * self.strength * site.state["fisher"]
        return (weight + pull * site.state["start"]) / (1 + pull)


def fisher_information(model: nn.Module, batches: Iterable[Any], loss_fn: Any) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: mean over samples of (∂ loss of the sample / ∂w)².

    Kirkpatrick et al. (2017), section 2.1; "empirical" since the labels are those of the data (Kunstner, Balles &
    Hennig, 2019, arXiv:1905.12558). The model computes in evaluation mode; a backward pass per sample.
    Write it with :func:`weightsmith.files.write_tensors`, for :class:`ElasticConsolidation`.

    Args:
        model: the model after the earlier task.
        batches: batches ``(inputs, targets)`` of that task.
        loss_fn: ``loss_fn(model(inputs), targets)``, the negative log-likelihood, such as ``nn.CrossEntropyLoss()``.

    Of several processes, each with its own batches, the mean is over the samples of all.

    Returns:
        Name to F, of the weight's shape, for every weight with ``requires_grad``.

    Raises:
        ConfigurationError: there is no sample, or a weight is parametrized or sharded.
    """
    weights = [weight for weight in inventory({"": model}, {}) if weight.trainable]
    for weight in weights:
        if weight.parametrized:
            raise ConfigurationError(
                f"fisher_information: weight {weight.name!r} is parametrized, and F is defined here for plain weights: "
                "make it plain first (detach the plugin, or torch.nn.utils.parametrize.remove_parametrizations)"
            )
        if is_sharded(weight.parameter):
            raise ConfigurationError(
                f"fisher_information: weight {weight.name!r} is sharded, so that gradients of single samples cannot be "
                "told apart: ask before fully_shard"
            )
    raw = [weight.parameter for weight in weights]
    sums = [torch.zeros_like(parameter, dtype=accurate_dtype(parameter.dtype)) for parameter in raw]
    samples = 0
    with evaluating({"": model}):
        for inputs, targets in batches:
            for sample, target in zip(inputs.split(1), targets.split(1), strict=True):
                slopes = torch.autograd.grad(loss_fn(model(sample), target), raw, allow_unused=True)
                samples += 1
                for total, slope in zip(sums, slopes, strict=True):
                    if slope is not None:
                        total.add_(slope.to(total.dtype).square())
    samples = int(total_over_processes(torch.tensor(samples)))
    if not samples:
        raise ConfigurationError("fisher_information: the batches hold no sample")
    return {w.name: total_over_processes(total) / samples for w, total in zip(weights, sums, strict=True)}
