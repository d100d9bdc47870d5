"""What the checks try plugins on: tensors, sites, small networks and real trainers."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ignite.engine import Events
from torch import Tensor, nn

from weightsmith.checkpoint import collect
from weightsmith.events import WeightEvents
from weightsmith.kinds import (
    Average,
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    WeightEditor,
)
from weightsmith.measurements import Picture, Settings
from weightsmith.plugin import Plugin
from weightsmith.shards import Part
from weightsmith.site import Site
from weightsmith.testing.cases import Case
from weightsmith.trainer import Trainer
from weightsmith.values import to_values

__all__ = [
    "asked",
    "batches_for",
    "channels_last",
    "counts_of",
    "equal",
    "has_handlers",
    "layer_for",
    "measured",
    "part_alone",
    "plural",
    "rounding",
    "scene",
    "singular",
    "state_of",
    "stopped_after",
    "tensors_for",
    "trainer_for",
]


def tensors_for(plugin: Plugin, shape: tuple[int, ...]) -> list[Tensor]:
    """What the kind's method takes before the site."""
    takes_two = isinstance(plugin, (GradientEditor, WeightEditor, Average))
    return [torch.randn(shape) for _ in range(2 if takes_two else 1)]


def asked(plugin: Any, method: str, *tensors: Tensor, site: Site) -> Any:
    """What one of its methods says of these tensors, with its memory of the site begun."""
    if not site.state:
        site._begin(plugin._first_entries(tensors[plugin.weight_argument].detach(), site))
    return plugin._ask(getattr(plugin, method), *tensors, site=site)


def singular(plugin: Any, tensors: Sequence[Tensor], number: int, part: Part | None = None) -> Tensor:
    """The singular form, on the weight that :func:`plural` takes as its ``number``-th; or on a part of it."""
    site = Site.alone(tensors[0], name=f"weight{number}", part=part)
    if isinstance(plugin, Penalty):
        gradient: Tensor = asked(plugin, "gradient", tensors[0], site=site)
        return torch.ones_like(tensors[0]) + gradient
    result: Tensor = plugin(*tensors, site=site)
    return result


def part_alone(whole: Tensor, start: int, size: int) -> Part:
    """Some rows of a weight, as another process would hold them; there is none that could be asked for the others."""
    nobody: Any = None
    return Part(whole.shape, 0, start, size, nobody, nobody)


def plural(plugin: Any, *columns: Sequence[Tensor]) -> list[Tensor]:
    """The plural form on copies: ``columns`` as lists of tensors, or one list with a method's arguments."""
    if len(columns) == 1 and isinstance(plugin, (GradientEditor, WeightEditor, Average)):
        columns = tuple([tensor] for tensor in columns[0])
    written = [column.clone(memory_format=torch.preserve_format) for column in columns[0]]
    sites = [Site.alone(tensor, name=f"weight{number}") for number, tensor in enumerate(written)]
    for tensor, site in zip(written, sites, strict=True):
        site._begin(plugin._first_entries(tensor, site))
    rest = [list(column) for column in columns[1:]]
    with torch.no_grad():
        if isinstance(plugin, Penalty):
            sums = [torch.ones_like(tensor) for tensor in written]
            plugin.gradient_all_(sums, written, sites)
            return sums
        if isinstance(plugin, Parametrization):
            return [plugin(tensor, site=site) for tensor, site in zip(written, sites, strict=True)]
        names = {Initializer: "draw_all_", Constraint: "project_all_", Average: "average_all_"}
        method = next((name for kind, name in names.items() if isinstance(plugin, kind)), "edit_all_")
        getattr(plugin, method)(written, *rest, sites)
    return written


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def rounding(dtype: torch.dtype) -> float:
    return 0.05 if dtype is torch.bfloat16 else 1e-5


def has_handlers(plugin: Plugin) -> bool:
    return not isinstance(plugin, Parametrization) and getattr(plugin, "mode", None) != "forward"


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def batches_for(case: Case) -> list[Tensor]:
    """Three batches for the case's layers."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(case.inputs, generator=generator) for _ in range(3)]


def layer_for(case: Case) -> nn.Module:
    """A layer without bias that can follow itself."""
    return nn.Linear(4, 4, bias=False) if case.layer is None else case.layer()


def trainer_for(model: nn.Module, plugin: Plugin, forward: Callable[[Tensor], Tensor], **options: Any) -> Trainer:
    def step(trainer: Trainer, batch: Tensor) -> Tensor:
        return trainer.update(lambda: forward(batch).square().mean())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, step=step, plugins=[plugin], seed=0, **options)


@contextlib.contextmanager
def scene(case: Case, run_dir: Path | None = None, **options: Any) -> Iterator[tuple[Trainer, list[Tensor]]]:
    """A small network with the plugin attached, and batches for it; a folder to write to while it lasts."""
    torch.manual_seed(0)
    if case.layer is None:
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    else:
        model = nn.Sequential(case.layer(), nn.Tanh(), case.layer())
    with tempfile.TemporaryDirectory() as folder:
        yield trainer_for(model, case.plugin, model, run_dir=run_dir or folder, **options), batches_for(case)


def measured(trainer: Trainer) -> list[Any]:
    """A list that fills with what the trainer's probes measure: step and values."""
    found: list[Any] = []

    def note() -> None:
        measurements = trainer.state.measurements
        if measurements is not None:
            values = {tag: v for tag, v in measurements.values.items() if not isinstance(v, (Settings, Picture))}
            found.append((measurements.step, to_values(copy.deepcopy(values), "measurements")))

    trainer.add_event_handler(WeightEvents.MEASURED, note)
    return found


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Weights, what optimizers and plugins remember, and where random numbers stand."""
    contents = copy.deepcopy(collect(trainer, in_order=True))
    own = contents.state["trainer"]
    own = {**own, "plugins": {label: {**state, "kept": []} for label, state in own["plugins"].items()}}
    parts = {part: contents.state[part] for part in ("optimizers", "windows", "gradients", "buffers", "frozen")}
    return {"weights": contents.weights, "own": own, "random": contents.state["position"]["random"], **parts}


class _Stopped(BaseException):
    """Ends a run as a kill would: the engine tidies up nothing."""


def stopped_after(iteration: int, trainer: Trainer, data: list[Tensor], epochs: int) -> Path:
    """Run up to an iteration, and the end of its epoch if it is the last, and save there. The checkpoint."""
    path = Path(str(trainer.run_dir)) / "stopped"

    def stop() -> None:
        trainer.save(path)
        raise _Stopped

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), lambda: trainer.at_safe_point(stop))
    with contextlib.suppress(_Stopped):
        trainer.run(data, max_epochs=epochs)
    return path


def counts_of(case: Case, epochs: int) -> list[int]:
    """The counts of its event at which the plugin acted, in a run with three updates an epoch."""
    counts: list[int] = []
    kind: Any = type(case.plugin)
    kind_act = kind.act

    def counting(self: Any, binding: Any) -> None:
        counts.append(binding.count())
        kind_act(self, binding)

    # `act` belongs to the kind; while counting, the class has one of its own in front of it.
    with scene(case) as (trainer, data), mock.patch.object(kind, "act", counting):
        trainer.run(data, max_epochs=epochs)
    return counts
