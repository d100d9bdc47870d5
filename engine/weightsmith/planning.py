"""The rows of a plan, from what is attached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from ignite.engine import Events

from weightsmith.attachment import Attachment
from weightsmith.events import WeightEvents
from weightsmith.kinds import Constraint, Initializer, Parametrization, Penalty
from weightsmith.plan import PlanRow
from weightsmith.schedules import Progress
from weightsmith.weights import Weight

__all__ = ["names_without", "plan_rows", "shaped_by"]


def plan_rows(attachments: Sequence[Attachment], epochs: int | None, epoch_length: int | None) -> tuple[PlanRow, ...]:
    """A row for each event of each plugin, in the order in which they happen."""
    rows = []
    for attachment in attachments:
        binding = attachment.binding
        events = ["FORWARD"] if binding is not None and binding.layers.weights() else []
        events += [handler.event for _, handler in attachment.handlers]
        rows += [(event, attachment) for event in events]
    position = {id(attachment): i for i, attachment in enumerate(attachments)}
    rows.sort(key=lambda row: (_PLACE.get(row[0], len(_PLACE)), row[1].plugin.order, position[id(row[1])]))
    return tuple(_row(event, attachment, attachments, epochs, epoch_length) for event, attachment in rows)


def shaped_by(attachment: Attachment) -> Iterator[Weight]:
    """The weights that a plugin draws, edits, constrains, charges for or parametrizes."""
    binding = attachment.binding
    if binding is not None and (binding.plugin.writes or isinstance(binding.plugin, (Parametrization, Penalty))):
        yield from binding.weights


def names_without(weights: Iterable[Weight], others: Iterable[Weight]) -> tuple[str, ...]:
    """The names of the weights that have no parameter in common with the others."""
    taken = {id(parameter) for weight in others for parameter in weight.raw}
    return tuple(weight.name for weight in weights if taken.isdisjoint(map(id, weight.raw)))


_PLACE = {
    name: place
    for place, name in enumerate(
        [
            "FORWARD",
            WeightEvents.INITIALIZING.name,
            Events.STARTED.name,
            Events.EPOCH_STARTED.name,
            Events.GET_BATCH_STARTED.name,
            Events.GET_BATCH_COMPLETED.name,
            Events.ITERATION_STARTED.name,
            WeightEvents.MICROBATCH_COMPLETED.name,
            WeightEvents.GRADIENTS_COMPUTED.name,
            WeightEvents.GRADIENTS_READY.name,
            WeightEvents.STEP_COMPLETED.name,
            WeightEvents.WEIGHTS_EDITED.name,
            WeightEvents.UPDATE_COMPLETED.name,
            Events.ITERATION_COMPLETED.name,
            Events.EPOCH_COMPLETED.name,
            WeightEvents.MEASURED.name,
            Events.COMPLETED.name,
        ]
    )
}


def _row(
    event: str, attachment: Attachment, others: Sequence[Attachment], epochs: int | None, epoch_length: int | None
) -> PlanRow:
    plugin, binding = attachment.plugin, attachment.binding
    values = _values_over_time(plugin, epochs, epoch_length)
    if binding is None:
        return PlanRow(event, repr(plugin), "", (), "", values)
    names = tuple(weight.name for weight in binding.weights)
    notes = (_note(attachment), _drawn_before(attachment, others), _gathered(attachment))
    note = "; ".join(filter(None, notes))
    return PlanRow(event, repr(plugin), binding.plugin.limits(), names, note, values)


def _note(attachment: Attachment) -> str:
    """What a reader should know of weights that are not trained."""
    binding = attachment.binding
    assert binding is not None
    idle = ", ".join(weight.name for weight in binding.weights if weight.optimizer is None)
    frozen = ", ".join(weight.name for weight in binding.weights if not weight.trainable)
    if idle and isinstance(attachment.plugin, Constraint):
        return f"in no optimizer, so enforced at the start only: {idle}"
    if frozen and not binding.plugin.acts_on_frozen:
        return f"frozen, so left alone: {frozen}"
    if idle and binding.plugin.uses_gradients:
        return f"in no optimizer: {idle}"
    if frozen and "weight" in binding.plugin.writes:
        return f"frozen, but acted on all the same: {frozen}"
    return ""


def _drawn_before(attachment: Attachment, others: Sequence[Attachment]) -> str:
    """Which weights of an initializer another one draws before it."""
    if not isinstance(attachment.plugin, Initializer) or attachment.binding is None:
        return ""
    before: dict[str, str] = {}
    for other in others[: others.index(attachment)]:
        if isinstance(other.plugin, Initializer) and other.binding is not None:
            before |= {weight.name: repr(other.plugin) for weight in other.binding.weights}
    again = [weight.name for weight in attachment.binding.weights if weight.name in before]
    return f"drawn before by {before[again[0]]}: {', '.join(again)}" if again else ""


def _gathered(attachment: Attachment) -> str:
    """Which sharded weights a plugin needs whole."""
    assert attachment.binding is not None
    scattered = ", ".join(target.weight.name for target in attachment.binding.all_targets().scattered)
    return f"sharded, so gathered one at a time: {scattered}" if scattered else ""


_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def _values_over_time(
    plugin: Any, epochs: int | None, epoch_length: int | None
) -> dict[str, tuple[tuple[float, Any], ...]]:
    """Of each field that a schedule gives: (share of the run, value) at five points, if the run's length is known."""
    if not plugin.scheduled or epochs is None or epoch_length is None:
        return {}
    points = [(share, plugin.resolved(_progress(share, epochs, epoch_length))) for share in _SHARES]
    moving = [
        field.name for field in fields(plugin) if getattr(points[0][1], field.name) != getattr(plugin, field.name)
    ]
    return {name: tuple((share, getattr(twin, name)) for share, twin in points) for name in moving}


def _progress(share: float, epochs: int, epoch_length: int) -> Progress:
    update = round(share * epochs * epoch_length)
    return Progress(update=update, epoch=min(epochs, (max(update, 1) - 1) // epoch_length + 1), share=share)
