"""One suite that every plugin must pass: a table row a plugin, what is special said in the row.

In a test file of your own::

    import pytest
    from weightsmith.testing import Case, conformance, missing

    CASES = [Case(MaxNorm(0.5), holds=lambda w: w.flatten(1).norm(dim=1) <= 0.5 + 1e-6)]

    @pytest.mark.parametrize(("check", "case"), conformance(CASES), ids=str)
    def test_conformance(check, case):
        check(case)

    def test_no_plugin_is_forgotten():
        assert missing(CASES, "my_package") == []

The checks use real trainers and real tensors; each raises ``AssertionError`` with what was found.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
import yaml
from ignite.engine import Events
from torch import Tensor, nn

import weightsmith
from weightsmith.kinds import (
    Average,
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    Probe,
    WeightEditor,
    WeightPlugin,
)
from weightsmith.plugin import Plugin
from weightsmith.recipe import from_plain, to_plain
from weightsmith.schedules import Progress
from weightsmith.selection import selector
from weightsmith.site import Site
from weightsmith.trainer import Trainer

__all__ = ["Case", "Check", "conformance", "missing"]


@dataclass(frozen=True, eq=False)
class Case:
    """One row of the table.

    Args:
        plugin: the plugin, configured so that it does something to standard normal weights.
        holds: for a constraint: true, elementwise or per unit, for points of its set, given a weight of shape
            ``(units, …)``; leave room for rounding.
        spans_weights: whether its mathematics spans all selected weights (a global norm), so that the singular form
            equals the plural form on one weight only.
        shapes: the shapes that it is tried on.
    """

    plugin: Plugin
    holds: Callable[[Tensor], Tensor] | None = None
    spans_weights: bool = False
    shapes: Sequence[tuple[int, ...]] = field(default=((6, 5), (4, 3, 2, 2)))

    def __str__(self) -> str:
        return repr(self.plugin)


@dataclass(frozen=True)
class Check:
    """One check, for the kinds that it applies to."""

    run: Callable[[Case], None]
    kinds: tuple[type[Any], ...]
    pure: bool

    def __call__(self, case: Case) -> None:
        torch.manual_seed(0)
        # The pure methods never see a schedule: outside a trainer, one stands at its start.
        self.run(replace(case, plugin=case.plugin.resolved(Progress())) if self.pure else case)

    def __str__(self) -> str:
        return self.run.__name__


_CHECKS: list[Check] = []


def _check(*kinds: type[Any], pure: bool = True) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def register(run: Callable[[Case], None]) -> Callable[[Case], None]:
        _CHECKS.append(Check(run, kinds, pure))
        return run

    return register


def conformance(cases: Sequence[Case]) -> list[tuple[Check, Case]]:
    """Every check that applies, with every case: parameters for ``pytest.mark.parametrize``."""
    return [(check, case) for case in cases for check in _CHECKS if isinstance(case.plugin, check.kinds)]


def missing(cases: Sequence[Case], *packages: str) -> list[str]:
    """The plugin classes of the packages that have no row in the table."""
    covered = {type(case.plugin) for case in cases}
    found = {cls for cls in _concrete(Plugin) if cls.__module__.partition(".")[0] in packages}
    return sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in found - covered)


def _concrete(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from _concrete(subclass)


# -------------------------------------------------------------------- every plugin


@_check(Plugin, pure=False)
def survives_repr_pickle_and_yaml(case: Case) -> None:
    """A configuration is a value: printing, pickling and YAML give back an equal plugin."""
    plugin = case.plugin
    names = {**vars(weightsmith), "selector": selector, type(plugin).__name__: type(plugin)}
    copies = {
        "repr": eval(repr(plugin), names),
        "pickle": pickle.loads(pickle.dumps(plugin)),
        "YAML": from_plain(yaml.safe_load(yaml.safe_dump(to_plain(plugin)))),
        "copy": copy.deepcopy(plugin),
    }
    for way, found in copies.items():
        assert found == plugin, f"through {way} came {found!r}"
        assert hash(found) == hash(plugin), f"through {way} the hash changed"


@_check(Plugin, pure=False)
def runs_attaches_and_detaches(case: Case) -> None:
    """It trains a small network without writing where it should not, appears in the plan, and leaves no handler."""
    with _scene(case.plugin, debug=True) as (trainer, data):
        trainer.detach(case.plugin)
        before = {event: list(handlers) for event, handlers in trainer._event_handlers.items() if handlers}
        trainer.attach(case.plugin)
        assert any(row.plugin == repr(case.plugin) for row in trainer.plan().rows), "the plan does not show it"
        trainer.run(data, max_epochs=2)
        trainer.detach(case.plugin)
        after = {event: handlers for event, handlers in trainer._event_handlers.items() if handlers}
        assert after == before, "handlers remain after detach"
        assert all(weight.isfinite().all() for weight in trainer.weights().values()), "weights are not finite"


@_check(Plugin, pure=False)
def state_survives_saving(case: Case) -> None:
    """What it remembers, saved and loaded into a new trainer, is the same."""
    with _scene(case.plugin) as (trainer, data), _scene(case.plugin) as (other, _):
        trainer.run(data, max_epochs=2)
        state = trainer.state_dict()
        other.load_state_dict(copy.deepcopy(state))
        again = other.state_dict()
        assert _equal(again["weightsmith"], state["weightsmith"]), f"{again['weightsmith']} instead"


@_check(WeightPlugin, pure=False)
def honours_every_after_before_and_at(case: Case) -> None:
    """It acts at count u when after < u < before and (u − after) % every == 0, of its own event or of another."""
    if not _has_handlers(case.plugin) or isinstance(case.plugin, Initializer):
        return
    plugin: Any = case.plugin
    limited = replace(plugin, every=2, after=1, before=8)
    by_updates = [count for count in _counts(limited, epochs=4) if count]
    total = 4 if isinstance(plugin, Probe) else 12
    assert by_updates == [u for u in range(1, total + 1) if 1 < u < 8 and (u - 1) % 2 == 0], by_updates
    at_epochs = _counts(replace(limited, at=Events.EPOCH_COMPLETED), epochs=6)
    assert at_epochs == [3, 5], f"at=EPOCH_COMPLETED it acted at epochs {at_epochs}"
    late = [count for count in _counts(replace(plugin, after="2 epochs"), epochs=4) if count]
    assert late[0] == (3 if isinstance(plugin, Probe) else 7), f"after='2 epochs' it first acted at {late[0]}"


@_check(WeightPlugin, pure=False)
def touches_tied_weights_once(case: Case) -> None:
    """Of two names of one weight, either selects it, and it is acted on once."""
    if not _has_handlers(case.plugin):
        return
    for name in ("first.weight", "second.weight"):
        tied = nn.ModuleDict({"first": nn.Linear(4, 4, bias=False), "second": nn.Linear(4, 4, bias=False)})
        tied["second"].weight = tied["first"].weight
        plugin: Any = case.plugin
        trainer = _trainer(tied, replace(plugin, where=name), nn.Sequential(*tied.values()))
        (row,) = {row.weights for row in trainer.plan().rows}
        assert row == ("first.weight",), f"where={name!r} gave {row}"


# -------------------------------------------------------------------- the pure methods


@_check(Initializer, GradientEditor, WeightEditor, Constraint, Parametrization, Average)
def leaves_its_input_untouched(case: Case) -> None:
    """The method returns a new tensor."""
    for shape in case.shapes:
        tensors = _tensors(case.plugin, shape)
        kept = [tensor.clone() for tensor in tensors]
        _call(case.plugin, tensors, 0)
        assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True)), f"it wrote to its input of {shape}"


@_check(Initializer, GradientEditor, WeightEditor, Constraint, Parametrization, Average)
def keeps_shape_dtype_and_device(case: Case) -> None:
    """In float32, float64 and bfloat16; contiguous, transposed and channels-last; also through the plural form."""
    for shape in case.shapes:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            tensors = [tensor.to(dtype) for tensor in _tensors(case.plugin, shape)]
            result = _call(case.plugin, tensors, 0)
            assert result.shape == shape, f"{shape} became {tuple(result.shape)}"
            assert result.dtype == dtype, f"{dtype} became {result.dtype}"
            assert result.device == tensors[0].device
            for strange in ([t.mT.contiguous().mT for t in tensors], [_channels_last(t) for t in tensors]):
                close = torch.allclose(_plural(case.plugin, strange)[0].double(), result.double(), atol=_atol(dtype))
                assert close, f"another memory layout of {shape} gave another result"


@_check(Initializer, GradientEditor, WeightEditor, Constraint, Parametrization, Average, Penalty)
def is_finite_on_zeros(case: Case) -> None:
    """Zero weights with zero gradients give finite numbers, and a penalty a finite gradient."""
    for shape in case.shapes:
        zeros = [torch.zeros_like(tensor) for tensor in _tensors(case.plugin, shape)]
        assert _call(case.plugin, zeros, 0).isfinite().all(), f"not finite on zeros of {shape}"
        if isinstance(case.plugin, Penalty):
            assert case.plugin.gradient(zeros[0], Site.alone(zeros[0])).isfinite().all(), "gradient not finite at zero"


@_check(Initializer, GradientEditor, WeightEditor, Constraint, Average, Penalty)
def plural_form_equals_singular(case: Case) -> None:
    """On many tensors at once as on each alone."""
    shapes = list(case.shapes) * 2
    batches = [_tensors(case.plugin, shape) for shape in shapes]
    groups = [[batch] for batch in batches] if case.spans_weights else [batches]
    for group in groups:
        columns = [list(column) for column in zip(*group, strict=True)]
        found = _plural(case.plugin, *columns) if len(columns) > 1 else _plural(case.plugin, columns[0])
        for number, batch in enumerate(group):
            wanted = _call(case.plugin, batch, number)
            assert torch.allclose(found[number], wanted, rtol=1e-5, atol=1e-6), f"differs on {tuple(batch[0].shape)}"


# -------------------------------------------------------------------- one kind


@_check(Initializer)
def draws_depend_on_nothing_else(case: Case) -> None:
    """The same site draws the same weight; its name and seed, nothing else, decide."""
    for shape in case.shapes:
        weight = torch.randn(shape)
        plugin: Any = case.plugin
        torch.manual_seed(1)
        first = plugin(weight, site=Site.alone(weight, seed=3))
        torch.manual_seed(2)
        assert torch.equal(first, plugin(weight, site=Site.alone(weight, seed=3))), "the global generator was used"


@_check(Penalty)
def gradient_is_the_costs_derivative(case: Case) -> None:
    """The closed form equals autograd's, and central finite differences, in float64."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        weight = torch.randn(shape, dtype=torch.float64).sign() * (0.1 + torch.rand(shape, dtype=torch.float64))
        site = Site.alone(weight)
        closed = plugin.gradient(weight, site)
        assert torch.allclose(closed, Penalty.gradient(plugin, weight, site), rtol=1e-9), "differs from autograd"
        differences = torch.zeros_like(weight)
        for index in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
            nudge = torch.zeros_like(weight)
            nudge[tuple(index)] = 1e-6
            rise = plugin.cost(weight + nudge, site) - plugin.cost(weight - nudge, site)
            differences[tuple(index)] = rise / 2e-6
        assert torch.allclose(closed, differences, rtol=1e-5, atol=1e-7), "differs from finite differences"


@_check(Penalty)
def proximal_map_is_a_minimum(case: Case) -> None:
    """Where there is a proximal form: no point near it has a lower step · cost(v) + ½‖v − w‖²."""
    plugin: Any = case.plugin
    if type(plugin).proximal is Penalty.proximal:
        return
    for shape in case.shapes:
        weight = torch.randn(shape, dtype=torch.float64)
        site = Site.alone(weight)
        nearest = plugin.proximal(weight, 0.3, site)

        def objective(v: Tensor, w: Tensor = weight, s: Site = site) -> Tensor:
            return 0.3 * plugin.cost(v, s) + (v - w).square().sum() / 2  # type: ignore[no-any-return]

        lowest = objective(nearest)
        for size in (1e-3, 1e-1, 1.0):
            for _ in range(50):
                assert objective(nearest + size * torch.randn_like(weight)) >= lowest - 1e-12, "a lower point is near"


@_check(GradientEditor)
def zero_weights_can_still_learn(case: Case) -> None:
    """A gradient at a zero weight does not vanish (unless the editor is meant to remove it)."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        edited = plugin(torch.randn(shape), torch.zeros(shape))
        assert edited.abs().sum() > 0, "a zero weight gets no gradient any more"


@_check(Constraint)
def projection_lands_in_the_set(case: Case) -> None:
    """From anywhere, tiny, huge and zero weights included; in the set by ``holds`` and by ``violation``."""
    plugin: Any = case.plugin
    assert case.holds is not None, "the row needs holds=…, which says what the set is"
    for shape in case.shapes:
        for scale in (1.0, 0.0, 1e-3, 1e3):
            weight = torch.randn(shape) * scale
            (projected,) = _plural(plugin, [weight])
            assert bool(case.holds(projected).all()), f"outside the set at scale {scale}: {projected}"
            violation = plugin.violation(projected, Site.alone(projected))
            assert violation <= plugin.tolerance(projected), f"violation {violation} after projecting"


@_check(Constraint)
def projection_is_stable(case: Case) -> None:
    """Projecting again changes no bit, a thousand times over; so a feasible weight is left alone, in every dtype."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            (once,) = _plural(plugin, [torch.randn(shape).to(dtype)])
            again = once
            for _ in range(1000 if dtype is torch.float32 else 3):
                (again,) = _plural(plugin, [again])
            assert torch.equal(again, once), f"moved by {(again - once).abs().max()} in {dtype}"


@_check(Constraint)
def forward_mode_gives_the_same_set(case: Case) -> None:
    """With ``mode="forward"`` the layer computes with a point of the set, the raw weight stays, a gradient flows."""
    plugin: Any = case.plugin
    if plugin.forward_gradient == "none":
        return
    layer = nn.Linear(5, 6, bias=False)
    pretrained = layer.weight.detach().clone()
    trainer = _trainer(layer, replace(plugin, mode="forward", where="weight"), layer)
    effective = layer.weight.detach().clone()
    assert torch.equal(trainer.weights()["weight"], pretrained), "the raw weight changed when it was parametrized"
    assert torch.allclose(effective, plugin(pretrained)), "the layer does not compute with the projection"
    trainer.run(_data(layer), max_epochs=2)
    assert not torch.equal(trainer.weights()["weight"], pretrained), "no gradient reached the raw weight"
    assert case.holds is None or bool(case.holds(layer.weight.detach()).all()), "the layer left the set"
    assert all(value <= 1e-5 for value in trainer.violations().values()), trainer.violations()


@_check(Parametrization)
def right_inverse_gives_the_weight_back(case: Case) -> None:
    """forward(right_inverse(w)) = w for a w that forward can give."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        weight = torch.randn(shape)
        site = Site.alone(weight)
        reached = plugin.forward(weight, site)
        again = plugin.forward(plugin.right_inverse(reached, site), site)
        assert torch.allclose(again, reached, atol=1e-5), "another weight came back"


@_check(Average)
def average_of_a_constant_is_the_constant(case: Case) -> None:
    """And the mean stays between the least and the largest weight that it saw."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        weight = torch.randn(shape)
        assert torch.allclose(plugin(weight.clone(), weight), weight, atol=1e-6), "not the constant"
        mean = plugin(weight, weight + 1)
        assert bool(((mean >= weight - 1e-6) & (mean <= weight + 1 + 1e-6)).all()), "outside what it averaged"


@_check(Probe)
def measures_any_tensor(case: Case) -> None:
    """Empty, bfloat16, complex and non-finite weights are measured without an error, and nothing is written."""
    plugin: Any = case.plugin
    strange = torch.tensor([[1.0, float("nan")], [float("inf"), -2.0]])
    for weight in (strange, torch.zeros(0, 3), torch.randn(4, 3).bfloat16(), torch.randn(2, 2, dtype=torch.complex64)):
        kept = weight.clone()
        parameter = nn.Parameter(weight)
        parameter.grad = weight.clone()
        site = Site.alone(parameter)
        assert isinstance(plugin.measure(parameter.detach(), site), dict)
        assert torch.equal(weight.isnan(), kept.isnan())
        assert torch.equal(weight.nan_to_num(), kept.nan_to_num())


# -------------------------------------------------------------------- tools


def _tensors(plugin: Plugin, shape: tuple[int, ...]) -> list[Tensor]:
    """What the kind's method takes before the site."""
    takes_two = isinstance(plugin, (GradientEditor, WeightEditor, Average))
    return [torch.randn(shape) for _ in range(2 if takes_two else 1)]


def _call(plugin: Any, tensors: Sequence[Tensor], number: int) -> Tensor:
    """The singular form, on the weight that :func:`_plural` takes as its ``number``-th."""
    site = Site.alone(tensors[0], name=f"weight{number}")
    if isinstance(plugin, Penalty):
        return torch.ones_like(tensors[0]) + plugin.gradient(tensors[0], site)
    return plugin(*tensors, site=site)  # type: ignore[no-any-return]


def _plural(plugin: Any, *columns: Sequence[Tensor]) -> list[Tensor]:
    """The plural form on copies: ``columns`` as lists of tensors, or one list with a method's arguments."""
    if len(columns) == 1 and isinstance(plugin, (GradientEditor, WeightEditor, Average)):
        columns = tuple([tensor] for tensor in columns[0])
    written = [column.clone(memory_format=torch.preserve_format) for column in columns[0]]
    sites = [Site.alone(tensor, name=f"weight{number}") for number, tensor in enumerate(written)]
    for tensor, site in zip(written, sites, strict=True):
        entries = plugin.init(tensor, site)
        if entries:
            site._begin(entries)
    rest = [list(column) for column in columns[1:]]
    with torch.no_grad():
        if isinstance(plugin, Penalty):
            sums = [torch.ones_like(tensor) for tensor in written]
            plugin.gradient_all_(sums, written, sites)
            return sums
        if isinstance(plugin, Parametrization):
            return [plugin.forward(tensor, site) for tensor, site in zip(written, sites, strict=True)]
        names = {Initializer: "draw_all_", Constraint: "project_all_", Average: "average_all_"}
        method = next((name for kind, name in names.items() if isinstance(plugin, kind)), "edit_all_")
        getattr(plugin, method)(written, *rest, sites)
    return written


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _atol(dtype: torch.dtype) -> float:
    return 0.05 if dtype is torch.bfloat16 else 1e-5


def _has_handlers(plugin: Plugin) -> bool:
    return not isinstance(plugin, Parametrization) and getattr(plugin, "mode", None) != "forward"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


def _data(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = next(module for module in model.modules() if isinstance(module, nn.Linear)).in_features
    return [torch.randn(4, width, generator=generator) for _ in range(3)]


def _trainer(model: nn.Module, plugin: Plugin, forward: Callable[[Tensor], Tensor], **options: Any) -> Trainer:
    def step(trainer: Trainer, batch: Tensor) -> Tensor:
        return trainer.update(forward(batch).square().mean())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, step=step, plugins=[plugin], seed=0, **options)


@contextlib.contextmanager
def _scene(plugin: Plugin, **options: Any) -> Iterator[tuple[Trainer, list[Tensor]]]:
    """A small network with the plugin attached, and three batches for it; a folder to write to while it lasts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    with tempfile.TemporaryDirectory() as folder:
        yield _trainer(model, plugin, model, run_dir=folder, **options), _data(model)


def _counts(plugin: Any, epochs: int) -> list[int]:
    """The counts of its event at which the plugin acted, in a run with three updates an epoch."""
    counts: list[int] = []
    kind_act = type(plugin).act

    def counting(self: Any, binding: Any) -> None:
        counts.append(binding.count())
        kind_act(self, binding)

    # `act` belongs to the kind; while counting, the class has one of its own in front of it.
    with _scene(plugin) as (trainer, data), mock.patch.object(type(plugin), "act", counting):
        trainer.run(data, max_epochs=epochs)
    return counts
