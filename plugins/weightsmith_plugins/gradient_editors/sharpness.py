"""Gradients taken where the loss is worst nearby."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from ignite.engine.events import EventEnum
from weightsmith import Trainer, WeightEvents
from weightsmith.binding import Binding
from weightsmith.joint import joint_norm
from weightsmith.kinds import WeightPlugin
from weightsmith.plugin import Subscription
from weightsmith.site import Sharding

from weightsmith_plugins.gradient_editors.clipping import require_positive

__all__ = ["SharpnessAware"]


class SharpnessAware(WeightPlugin):
    """g ← ∇L(w + e) with e = rho · g / ‖g‖ over all selected weights: steps towards flat minima. Weights that
    ``Freeze`` holds count among them unless ``where`` leaves them out.

    Foret et al. (2021), "Sharpness-aware minimization for efficiently improving generalization", arXiv:2010.01412,
    algorithm 1; ``adaptive`` is Kwon et al. (2021), arXiv:2102.11600: e = rho · w²g / ‖wg‖. L includes the penalties.

    Wraps the evaluation: the loss is computed a second time at w + e, after which the weights are bit for bit as before
    and gradient editors see the second gradient. MICROBATCH_COMPLETED and GRADIENTS_COMPUTED fire for both. Running
    statistics of batch norm follow the first evaluation only; the reported loss is the first.

    Args:
        rho: the radius, above 0. Default 0.05.
        adaptive: whether the radius follows each weight's magnitude. Default false.

    Raises:
        ConfigurationError: with accumulation, float16 or LBFGS, where it is not defined; or if ``update`` is given a
            loss instead of a function that computes it (the default step gives one).
    """

    sharding: ClassVar[Sharding] = "joint"
    event: ClassVar[EventEnum] = WeightEvents.GRADIENTS_COMPUTED
    order: ClassVar[int] = 38
    uses_gradients: ClassVar[bool] = True
    acts_on_its_event_only: ClassVar[bool] = True
    evaluates_again: ClassVar[bool] = True

    rho: float = 0.05
    adaptive: bool = False

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"gradient", "weight"})

    def validate(self) -> None:
        require_positive(self, "rho", self.rho)

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        trainer.require_reevaluation()
        binding = trainer.bind(self)

        def run() -> None:
            if binding.is_first_evaluation() and not trainer.is_skipping:
                binding.run()

        yield self.event, run

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets, gradients = binding.targets().with_gradients()
        if not targets:
            return
        weights = targets.tensors
        slopes = [weight.abs() * g if self.adaptive else g for weight, g in zip(weights, gradients, strict=True)]
        norm = joint_norm(slopes, targets.sites)
        reach = self.rho / torch.where(norm > 0, norm, 1)
        kept = [weight.clone() for weight in weights]
        buffers = [
            (module, leaf, buffer, buffer.clone())
            for model in binding.trainer.models.values()
            for module in model.modules()
            for leaf, buffer in module.named_buffers(recurse=False)
        ]
        try:
            for weight, slope in zip(weights, slopes, strict=True):
                weight.add_((weight.abs() * slope if self.adaptive else slope) * reach.to(slope.dtype))
            binding.trainer.reevaluate()
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
            for module, leaf, buffer, value in buffers:
                setattr(module, leaf, buffer.copy_(value))  # the module may hold another tensor by now
