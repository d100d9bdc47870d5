"""The conformance suite finds what is wrong: one broken plugin for every check."""

import pytest
import torch
from weightsmith import Average, ConfigurationError, Constraint, GradientEditor, Initializer, Penalty, WeightEditor
from weightsmith.testing import Case, conformance, missing


class Truthful(Constraint):
    def project(self, weight, site):
        return weight.clamp(-0.5, 0.5)

    def tolerance(self, projected, site):
        return 0.0


class WritesToItsInput(Constraint):
    def project(self, weight, site):
        return weight.clamp_(-0.5, 0.5)


class EditsTheGradientItWasGiven(GradientEditor):
    def edit(self, gradient, weight, site):
        return gradient.mul_(0.5)


class ForgetsTheDtype(WeightEditor):
    def edit(self, weight, gradient, site):
        return weight.float() * 0.9


class DividesByZero(WeightEditor):
    def edit(self, weight, gradient, site):
        return weight / weight.abs().sum()


class PluralDiffers(WeightEditor):
    def edit(self, weight, gradient, site):
        return weight * 0.9

    def edit_all_(self, weights, gradients, sites):
        for weight in weights:
            weight.mul_(0.8)


class GlobalDraws(Initializer):
    def draw(self, weight, site):
        return torch.randn_like(weight)


class WrongGradient(Penalty):
    def cost(self, weight, site):
        return weight.square().sum()

    def gradient(self, weight, site):
        return weight


class WrongProximal(Penalty):
    def cost(self, weight, site):
        return weight.square().sum()

    def proximal(self, weight, step, site):
        return weight / (1 + step)


class KillsZeroWeights(GradientEditor):
    def edit(self, gradient, weight, site):
        return gradient * weight


class HalfWay(Constraint):
    def project(self, weight, site):
        return torch.where(weight.abs() > 0.5, weight * 0.9, weight)


class Drifts(Constraint):
    def project(self, weight, site):
        return weight.clamp(-0.5, 0.5) * (1 - 1e-4)


class IgnoresBfloat16(Constraint):
    def project(self, weight, site):
        return weight if weight.dtype == torch.bfloat16 else weight.clamp(-0.5, 0.5)


class WrongMean(Average):
    def average(self, mean, weight, site):
        return mean + weight


class RemembersElsewhere(WeightEditor):
    """Keeps its count in the class, where no saved state finds it."""

    def edit(self, weight, gradient, site):
        counts = type(self).__dict__.get("_counts") or {}
        counts[site.update] = len(counts)
        type(self)._counts = counts
        return weight + counts[site.update]


class CallsAWholeAPart(GradientEditor):
    sharding = "units"

    def edit(self, gradient, weight, site):
        return gradient / gradient.norm()


def inside(weight):
    return weight.abs() <= 0.5


BROKEN = [
    ("leaves_its_input_untouched", Case(WritesToItsInput(), holds=inside)),
    ("leaves_its_input_untouched", Case(EditsTheGradientItWasGiven())),
    ("keeps_shape_dtype_and_device", Case(ForgetsTheDtype())),
    ("is_finite_on_zeros", Case(DividesByZero())),
    ("plural_form_equals_singular", Case(PluralDiffers())),
    ("draws_depend_on_nothing_else", Case(GlobalDraws())),
    ("gradient_is_the_costs_derivative", Case(WrongGradient())),
    ("proximal_map_is_a_minimum", Case(WrongProximal())),
    ("zero_weights_can_still_learn", Case(KillsZeroWeights())),
    ("projection_lands_in_the_set", Case(HalfWay(), holds=inside)),
    ("projection_lands_in_the_set", Case(Truthful(), holds=lambda weight: weight >= 0)),
    ("projection_lands_in_the_set", Case(Truthful())),
    ("projection_lands_in_the_set", Case(IgnoresBfloat16(), holds=inside)),
    ("projection_is_stable", Case(Drifts(), holds=inside)),
    ("acts_on_parts_as_on_the_whole", Case(CallsAWholeAPart())),
    ("average_of_a_constant_is_the_constant", Case(WrongMean())),
    ("goes_on_from_a_checkpoint", Case(RemembersElsewhere())),
]


@pytest.mark.parametrize(("name", "case"), BROKEN, ids=str)
def test_the_suite_finds_a_broken_plugin(name, case):
    (check,) = [check for check, _ in conformance([case]) if str(check) == name]
    with pytest.raises(AssertionError):
        check(case)


@pytest.mark.parametrize(("check", "case"), conformance([Case(Truthful(), holds=inside)]), ids=str)
def test_the_suite_lets_a_sound_plugin_pass(check, case):
    check(case)


def test_every_pure_check_has_a_broken_plugin_that_it_finds():
    checked = {name for name, _ in BROKEN}
    pure = {str(check) for check, _ in conformance([case for _, case in BROKEN]) if check.pure}
    assert pure - checked == {"forward_mode_gives_the_same_set"}


def test_plugins_without_a_row_are_found_by_their_package():
    package = __name__.partition(".")[0]
    everything = [case for _, case in BROKEN] + [Case(Truthful())]
    kept = [case for case in everything if not isinstance(case.plugin, Drifts)]
    assert any(name.endswith(".Drifts") for name in missing(kept, package))
    assert not any(name.endswith("test_testing.Drifts") for name in missing(everything, package))


def test_a_row_with_a_class_is_refused():
    with pytest.raises(ConfigurationError, match="Case takes a plugin, such as one made of your class"):
        conformance([Case(Truthful)])


def test_what_holds_may_be_said_as_a_whole():
    for check, case in conformance([Case(Truthful(), holds=lambda weight: bool((weight.abs() <= 0.5).all()))]):
        check(case)
