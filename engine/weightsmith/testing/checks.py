"""The checks that every plugin must pass."""

from __future__ import annotations

import copy
import pickle
import sys
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
import yaml
from ignite.engine import Events
from torch import Tensor, nn

import weightsmith
from weightsmith.events import WeightEvents
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
from weightsmith.recipe import from_plain
from weightsmith.rows import LEAST_TOGETHER
from weightsmith.selection import selector
from weightsmith.site import Site
from weightsmith.testing.cases import Case, check
from weightsmith.testing.scenes import (
    asked,
    batches_for,
    channels_last,
    counts_of,
    equal,
    has_handlers,
    layer_for,
    measured,
    part_alone,
    plural,
    rounding,
    scene,
    singular,
    state_of,
    stopped_after,
    tensors_for,
    trainer_for,
)

# -------------------------------------------------------------------- every plugin


@check(Plugin, pure=False)
def survives_repr_pickle_and_yaml(case: Case) -> None:
    """A configuration is a value: printing, pickling and YAML give back an equal plugin."""
    plugin = case.plugin
    package = sys.modules[type(plugin).__module__.partition(".")[0]]
    names = {**vars(weightsmith), **vars(package), "selector": selector, type(plugin).__name__: type(plugin)}
    copies = {
        "repr": eval(repr(plugin), names),
        "pickle": pickle.loads(pickle.dumps(plugin)),
        "YAML": from_plain(yaml.safe_load(yaml.safe_dump(plugin.to_plain()))),
        "copy": copy.deepcopy(plugin),
    }
    for way, found in copies.items():
        assert found == plugin, f"through {way} came {found!r}"
        assert hash(found) == hash(plugin), f"through {way} the hash changed"


@check(Plugin, pure=False)
def runs_attaches_and_detaches(case: Case) -> None:
    """It trains a small network without writing where it should not, appears in the plan, and leaves no handler."""
    with scene(case, debug=True) as (trainer, data):
        trainer.detach(case.plugin)
        before = {event: list(handlers) for event, handlers in trainer._event_handlers.items() if handlers}
        trainer.attach(case.plugin)
        assert any(row.plugin == repr(case.plugin) for row in trainer.plan().rows), "the plan does not show it"
        trainer.run(data, max_epochs=2)
        trainer.detach(case.plugin)
        after = {event: handlers for event, handlers in trainer._event_handlers.items() if handlers}
        assert after == before, "handlers remain after detach"
        assert all(weight.isfinite().all() for weight in trainer.weights().values()), "weights are not finite"


@check(Plugin, pure=False)
def goes_on_from_a_checkpoint(case: Case) -> None:
    """Stopped inside an epoch or at its end, saved, resumed and run on: the same weights, the same memory and the same
    measurements, bit for bit."""
    with scene(case) as (whole, data):
        wanted = measured(whole)
        whole.run(data, max_epochs=3)
        end = state_of(whole)
    for iteration in (2, 3, 4):
        with scene(case) as (first, data):
            found = measured(first)
            saved = stopped_after(iteration, first, data, epochs=3)
            with scene(case, run_dir=first.run_dir) as (second, _):
                second.resume(saved)
                rest = measured(second)
                second.run(data, max_epochs=3)
                assert equal(state_of(second), end), f"resumed after iteration {iteration}, the run ends elsewhere"
                assert equal(found + rest, wanted), f"resumed after iteration {iteration}, it measures something else"


@check(WeightPlugin, pure=False)
def honours_every_after_before_and_at(case: Case) -> None:
    """It acts at count u when after < u < before and (u − after) % every == 0, of its own event or of another."""
    if not has_handlers(case.plugin) or isinstance(case.plugin, Initializer):
        return
    plugin: Any = case.plugin
    limited = replace(plugin, every=2, after=1, before=8)
    acted = [count for count in counts_of(replace(case, plugin=limited), epochs=4) if count]
    total = 4 if plugin.event == Events.EPOCH_COMPLETED else 12
    assert acted == [u for u in range(1, total + 1) if 1 < u < 8 and (u - 1) % 2 == 0], f"it acted at {acted}"
    if plugin.acts_on_its_event_only:
        return
    elsewhere = WeightEvents.GRADIENTS_READY if "gradient" in plugin.writes else Events.EPOCH_COMPLETED
    moved = counts_of(replace(case, plugin=replace(limited, at=elsewhere)), epochs=6)
    assert moved == [3, 5, 7][: 3 if "gradient" in plugin.writes else 2], f"at {elsewhere} it acted at {moved}"
    late = [count for count in counts_of(replace(case, plugin=replace(plugin, after="2 epochs")), epochs=4) if count]
    assert late[0] == (3 if isinstance(plugin, Probe) else 7), f"after='2 epochs' it first acted at {late[0]}"


@check(WeightPlugin, pure=False)
def touches_tied_weights_once(case: Case) -> None:
    """Either name selects it; two layers that share a weight end where one layer, used twice, does."""
    if not has_handlers(case.plugin):
        return
    plugin: Any = case.plugin
    ends = []
    for name, tie in (("first.weight", True), ("second.weight", True), ("first.weight", False)):
        torch.manual_seed(0)
        first, second = layer_for(case), layer_for(case)
        second.weight = first.weight
        parts = {"first": first, "second": second} if tie else {"first": first, "again": first}
        model = nn.Sequential(OrderedDict(parts))
        trainer = trainer_for(model, replace(plugin, where=name), model)
        (row,) = {row.weights for row in trainer.plan().rows}
        assert row == ("first.weight",), f"where={name!r} gave {row}"
        trainer.run(batches_for(case), max_epochs=2)
        ends.append(trainer.weights()["first.weight"].detach())
    assert torch.equal(ends[0], ends[2]), "tied weights are not acted on as one"
    assert torch.equal(ends[1], ends[2]), "tied weights are not acted on as one"


# -------------------------------------------------------------------- the pure methods


@check(Initializer, GradientEditor, WeightEditor, Constraint, Parametrization, Average)
def leaves_its_input_untouched(case: Case) -> None:
    """The method returns a new tensor."""
    for shape in case.shapes:
        tensors = tensors_for(case.plugin, shape)
        kept = [tensor.clone() for tensor in tensors]
        singular(case.plugin, tensors, 0)
        assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True)), f"it wrote to its input of {shape}"


@check(Initializer, GradientEditor, WeightEditor, Constraint, Parametrization, Average)
def keeps_shape_dtype_and_device(case: Case) -> None:
    """In float32, float64 and bfloat16; contiguous, transposed and channels-last; also through the plural form."""
    for shape in case.shapes:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            tensors = [tensor.to(dtype) for tensor in tensors_for(case.plugin, shape)]
            result = singular(case.plugin, tensors, 0)
            assert result.shape == shape, f"{shape} became {tuple(result.shape)}"
            assert result.dtype == dtype, f"{dtype} became {result.dtype}"
            assert result.device == tensors[0].device, f"{tensors[0].device} became {result.device}"
            for strange in ([t.mT.contiguous().mT for t in tensors], [channels_last(t) for t in tensors]):
                close = torch.allclose(plural(case.plugin, strange)[0].double(), result.double(), atol=rounding(dtype))
                assert close, f"another memory layout of {shape} gave another result"


@check(Initializer, GradientEditor, WeightEditor, Constraint, Parametrization, Average, Penalty)
def is_finite_on_zeros(case: Case) -> None:
    """Zero weights with zero gradients give finite numbers, and a penalty a finite gradient."""
    for shape in case.shapes:
        zeros = [torch.zeros_like(tensor) for tensor in tensors_for(case.plugin, shape)]
        assert singular(case.plugin, zeros, 0).isfinite().all(), f"not finite on zeros of {shape}"
        if isinstance(case.plugin, Penalty):
            assert asked(case.plugin, "gradient", zeros[0], site=Site.alone(zeros[0])).isfinite().all(), (
                "gradient not finite at zero"
            )


@check(Initializer, GradientEditor, WeightEditor, Constraint, Average, Penalty)
def plural_form_equals_singular(case: Case) -> None:
    """On many tensors at once as on each alone."""
    shapes = list(case.shapes) * LEAST_TOGETHER
    batches = [tensors_for(case.plugin, shape) for shape in shapes]
    groups = [[batch] for batch in batches] if case.spans_weights else [batches]
    for group in groups:
        columns = [list(column) for column in zip(*group, strict=True)]
        found = plural(case.plugin, *columns) if len(columns) > 1 else plural(case.plugin, columns[0])
        for number, batch in enumerate(group):
            wanted = singular(case.plugin, batch, number)
            assert torch.allclose(found[number], wanted, rtol=1e-5, atol=1e-6), f"differs on {tuple(batch[0].shape)}"


# -------------------------------------------------------------------- one kind


@check(Initializer, Penalty, GradientEditor, WeightEditor, Constraint, Average)
def acts_on_parts_as_on_the_whole(case: Case) -> None:
    """If it says that it treats every value, or every unit, on its own (``sharding``), what it makes of some rows of a
    weight are these rows of what it makes of the weight."""
    handling = case.plugin.handling  # type: ignore[attr-defined]
    for shape in case.shapes if handling in ("values", "units") else ():
        tensors = tensors_for(case.plugin, shape)
        whole, first = singular(case.plugin, tensors, number=0), shape[0] // 2
        for start, size in ((0, first), (first, shape[0] - first)):
            part = part_alone(tensors[0], start, size)
            found = singular(case.plugin, [tensor.narrow(0, start, size) for tensor in tensors], number=0, part=part)
            wanted = whole.narrow(0, start, size)
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6), f"rows {start} to {start + size} come out else"


@check(Initializer)
def draws_depend_on_nothing_else(case: Case) -> None:
    """The same site draws the same weight; its name and seed, nothing else, decide."""
    for shape in case.shapes:
        weight = torch.randn(shape)
        plugin: Any = case.plugin
        torch.manual_seed(1)
        first = plugin(weight, site=Site.alone(weight, seed=3))
        torch.manual_seed(2)
        assert torch.equal(first, plugin(weight, site=Site.alone(weight, seed=3))), "the global generator was used"


@check(Penalty)
def gradient_is_the_costs_derivative(case: Case) -> None:
    """The closed form equals autograd's, and central finite differences, in float64."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        weight = torch.randn(shape, dtype=torch.float64).sign() * (0.1 + torch.rand(shape, dtype=torch.float64))
        site = Site.alone(weight)
        closed = asked(plugin, "gradient", weight, site=site)
        assert torch.allclose(closed, Penalty.gradient(plugin, weight, site), rtol=1e-9), "differs from autograd"
        differences = torch.zeros_like(weight)
        for index in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
            nudge = torch.zeros_like(weight)
            nudge[tuple(index)] = 1e-6
            rise = plugin.cost(weight + nudge, site) - plugin.cost(weight - nudge, site)
            differences[tuple(index)] = rise / 2e-6
        assert torch.allclose(closed, differences, rtol=1e-5, atol=1e-7), "differs from finite differences"


@check(Penalty)
def proximal_map_is_a_minimum(case: Case) -> None:
    """Where there is a proximal form: no point near it has a lower step · cost(v) + ½‖v − w‖²."""
    plugin: Any = case.plugin
    if type(plugin).proximal is Penalty.proximal:
        return
    for shape in case.shapes:
        weight = torch.randn(shape, dtype=torch.float64)
        site = Site.alone(weight)
        site._begin(plugin._first_entries(torch.randn_like(weight), site))
        nearest = plugin.proximal(weight, 0.3, site)

        def objective(v: Tensor, w: Tensor = weight, s: Site = site) -> Tensor:
            return 0.3 * plugin.cost(v, s) + (v - w).square().sum() / 2  # type: ignore[no-any-return]

        lowest = objective(nearest)
        for size in (1e-3, 1e-1, 1.0):
            for _ in range(50):
                assert objective(nearest + size * torch.randn_like(weight)) >= lowest - 1e-12, "a lower point is near"


@check(GradientEditor)
def zero_weights_can_still_learn(case: Case) -> None:
    """A gradient at a zero weight does not vanish (unless the editor is meant to remove it)."""
    plugin: Any = case.plugin
    if case.stops_learning:
        return
    for shape in case.shapes:
        edited = plugin(torch.randn(shape), torch.zeros(shape))
        assert edited.abs().sum() > 0, "a zero weight gets no gradient any more"


@check(Constraint)
def projection_lands_in_the_set(case: Case) -> None:
    """From anywhere, tiny, huge and zero weights included; in the set by ``holds`` and by ``violation``."""
    plugin: Any = case.plugin
    assert case.holds is not None, (
        "its row does not say what the set is: write what is true of points of it, elementwise or per unit and with "
        f"room for rounding, such as Case({plugin!r}, holds=lambda weight: weight.abs() <= 1 + 1e-6)"
    )
    for shape in case.shapes:
        for scale in (1.0, 0.0, 1e-3, 1e3):
            weight = torch.randn(shape) * scale
            (projected,) = plural(plugin, [weight])
            assert bool(torch.as_tensor(case.holds(projected)).all()), (
                f"outside the set: a weight of shape {shape} at scale {scale}"
            )
            half = plural(plugin, [weight.bfloat16()])[0]
            exact = plugin(half.double(), site=Site.alone(half.double(), name="weight0"))
            largest = exact.abs().amax()
            assert (exact - half.double()).abs().amax() <= largest * 2 * torch.finfo(half.dtype).eps, "not in bfloat16"
            violation = plugin.violation(projected, Site.alone(projected))
            assert plugin.measured_violation(projected, Site.alone(projected)) == 0, f"violation {violation} remains"


@check(Constraint)
def projection_is_stable(case: Case) -> None:
    """Projecting again changes no bit, a thousand times over; so a feasible weight is left alone, in every dtype."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            (once,) = plural(plugin, [torch.randn(shape).to(dtype)])
            again = once
            for _ in range(1000 if dtype is torch.float32 else 3):
                (again,) = plural(plugin, [again])
            assert torch.equal(again, once), (
                f"project(project(w)) is off project(w) by {(again - once).abs().max():.1g} in {dtype}"
            )


@check(Constraint)
def forward_mode_gives_the_same_set(case: Case) -> None:
    """With ``mode="forward"`` the layer computes with a point of the set, the raw weight stays, a gradient flows."""
    plugin: Any = case.plugin
    if plugin.forward_gradient == "none":
        return
    layer: Any = nn.Linear(5, 6, bias=False) if case.layer is None else case.layer()
    pretrained = layer.weight.detach().clone()
    trainer = trainer_for(layer, replace(plugin, mode="forward", momentum="keep", where="weight"), layer)
    effective = layer.weight.detach().clone()
    assert torch.equal(trainer.weights()["weight"], pretrained), "the raw weight changed when it was parametrized"
    assert torch.allclose(effective, plugin(pretrained)), "the layer does not compute with the projection"
    inputs = (4, 5) if case.layer is None else case.inputs
    trainer.run([torch.randn(inputs)] * 3, max_epochs=2)
    assert not torch.equal(trainer.weights()["weight"], pretrained), "no gradient reached the raw weight"
    assert case.holds is None or bool(torch.as_tensor(case.holds(layer.weight.detach())).all()), (
        "the layer left the set"
    )
    assert all(value <= 1e-5 for value in trainer.violations().values()), trainer.violations()


@check(Parametrization)
def right_inverse_gives_the_weight_back(case: Case) -> None:
    """forward(right_inverse(w)) = w for a w that forward can give."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        weight = torch.randn(shape)
        site = Site.alone(weight)
        added = plugin.parameters(weight, site)
        reached = asked(plugin, "forward", weight, site=site._having(added))
        inverse = plugin._asked(plugin.right_inverse, reached, site=site._having(added))
        raw, entries = inverse if isinstance(inverse, tuple) else (inverse, {})
        again = asked(plugin, "forward", raw, site=site._having({**added, **entries}))
        assert torch.allclose(again, reached, atol=1e-5), "another weight came back"


@check(Average)
def average_of_a_constant_is_the_constant(case: Case) -> None:
    """And the mean stays between the least and the largest weight that it saw."""
    plugin: Any = case.plugin
    for shape in case.shapes:
        weight = torch.randn(shape)
        assert torch.allclose(plugin(weight.clone(), weight), weight, atol=1e-6), "not the constant"
        mean = plugin(weight, weight + 1)
        assert bool(((mean >= weight - 1e-6) & (mean <= weight + 1 + 1e-6)).all()), "outside what it averaged"


@check(Probe)
def measures_any_tensor(case: Case) -> None:
    """Empty, bfloat16, complex and non-finite weights are measured without an error, and nothing is written."""
    plugin: Any = case.plugin
    strange = torch.tensor([[1.0, float("nan")], [float("inf"), -2.0]])
    for weight in (strange, torch.zeros(0, 3), torch.randn(4, 3).bfloat16(), torch.randn(2, 2, dtype=torch.complex64)):
        kept = weight.clone()
        parameter = nn.Parameter(weight)
        parameter.grad = weight.clone()
        site = Site.alone(parameter)
        found = asked(plugin, "measure", parameter.detach(), site=site)
        assert isinstance(found, dict), f"it measured {found!r}: return a dict of group to measurement"
        same = torch.equal(weight.isnan(), kept.isnan()) and torch.equal(weight.nan_to_num(), kept.nan_to_num())
        assert same, f"it wrote to a weight of shape {tuple(weight.shape)} and {weight.dtype}"
