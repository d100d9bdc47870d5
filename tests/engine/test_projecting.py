"""What a constraint writes of its projection: a weight that is inside, to within the tolerance, stays bit for bit."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from weightsmith import Constraint, Site

VALUES = {
    "usual": lambda x: x,
    "zeros": torch.zeros_like,
    "small": lambda x: x / 1000,
    "tiny": lambda x: x * torch.finfo(x.dtype).tiny,
    "with infinity": lambda x: x.index_fill(0, torch.tensor([0]), torch.inf) if x.ndim else x,
    "with NaN": lambda x: x.index_fill(0, torch.tensor([0]), torch.nan) if x.ndim else x,
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Given(Constraint):
    """Projects to what it is told."""

    result: ClassVar[torch.Tensor]

    def project(self, weight, site):
        return self.result


class GivenByUnits(Given):
    unitwise: ClassVar[bool] = True


class InAFactorOfTwo(Given):
    """Lets weights stay that are up to a factor of two away, value by value."""

    def tolerance(self, projected, site):
        return projected.abs() / 2


class Jointly(Given):
    """Asks other processes for their parts, of which this one may have none."""

    sharding: ClassVar[str] = "joint"

    def tolerance(self, projected, site):
        return 0.0


class NearlyTheBall(Constraint):
    """Every unit to norm 1 at most: of one that is inside a rounding is left."""

    unitwise: ClassVar[bool] = True

    def project(self, weight, site):
        norms = weight.norm(dim=site.unit_dims, keepdim=True)
        return torch.where(norms > 1, normalize(weight, dim=site.unit_dims), weight * (1 + 2e-7))


def projected_to(kind, weight, result, site=None):
    """The weight after it was told where it is to be."""
    plugin = type(kind.__name__, (kind,), {"result": result, "__annotations__": {}})()
    found, site = weight.clone(), site or Site.alone(weight)
    plugin.project_all_([found], [site])
    within = ((result.double() - weight.double()).abs() <= plugin.tolerance(result, site)).all()
    return found, weight if within else result


def assert_same_bits(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit(), wanted.signbit())


@given(
    shape=st.sampled_from([(4, 6), (1, 1), (7,), (3, 2, 2), ()]),
    dtype=st.sampled_from(DTYPES),
    values=st.sampled_from(list(VALUES)),
    steps=st.sampled_from([0.0, 0.5, 1.0, 2.0, 1000.0]),
    place=st.integers(0, 23),
    seed=st.integers(0, 100),
    kind=st.sampled_from([Given, GivenByUnits]),
)
@settings(deadline=None, max_examples=400)
def test_a_weight_moves_where_a_value_moves_by_more_than_the_tolerance(shape, dtype, values, steps, place, seed, kind):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weight = VALUES[values](drawn)
    result = weight.clone()
    off = steps * kind().tolerance(weight, Site.alone(weight)).expand_as(weight)
    place %= weight.numel()
    result.view(-1)[place] += off.reshape(-1)[place]
    found, wanted = projected_to(kind, weight, result)
    assert_same_bits(found, wanted)


@given(
    layout=st.sampled_from(["rows", "long rows", "columns", "one unit"]),
    steps=st.sampled_from([0.0, 0.5, 2.0, 1e3]),
    place=st.integers(0, 4_000) | st.integers(0, 59_999),
    grows=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=200)
def test_of_a_large_weight_a_value_is_asked_by_its_own_units_tolerance(layout, steps, place, grows, seed):
    """Units are of many sizes; the largest value of one may be anywhere in memory."""
    shape = {
        "rows": (600, 100),
        "long rows": (4, 15_000),
        "columns": (600, 4, 5, 5),
        "one unit": (60_000,),
    }[layout]
    site = Site.alone(torch.empty(shape), torch.nn.ConvTranspose2d(600, 4, 5) if layout == "columns" else None)
    sizes = torch.logspace(-4, 4, shape[0]).view(-1, *[1] * (len(shape) - 1))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight = drawn * (sizes if grows else sizes.flip(0))
    off = steps * Given().tolerance(weight, site).expand_as(weight)
    result = weight.clone()
    result.view(-1)[place] += off.reshape(-1)[place]
    found, wanted = projected_to(Given, weight, result, site)
    assert_same_bits(found, wanted)


def test_the_tolerance_is_four_units_of_rounding_of_the_largest_value():
    weight = torch.tensor([[1.0, -8.0], [0.5, 0.0]])
    assert torch.equal(Given().tolerance(weight, Site.alone(weight)), 4 * 2.0**-23 * torch.tensor([[8.0], [0.5]]))


@pytest.mark.parametrize(("largest", "place"), [(0, 280_000), (-1, 100)])
def test_a_row_that_is_longer_than_a_block_is_asked_by_its_largest_value_wherever_that_is(largest, place):
    weight = torch.ones(1, 300_000)
    weight[0, largest] = 1e4
    for steps in (0.5, 2.0):
        result = weight.clone()
        result[0, place] += steps * Given().tolerance(weight, Site.alone(weight)).item()
        found, wanted = projected_to(Given, weight, result)
        assert_same_bits(found, wanted)
        assert torch.equal(wanted, weight) == (steps < 1)


@pytest.mark.parametrize(("largest", "place"), [(0, -1), (-1, 0)])
def test_a_row_is_in_one_block(largest, place):
    """Blocks have 2¹⁸ values, of which those after the first row would end within the tenth."""
    weight = torch.full((20, 30_000), 1e-3)
    weight[9, largest] = 1.0
    for steps in (0.5, 2.0):
        result = weight.clone()
        result[9, place] += steps * Given().tolerance(weight, Site.alone(weight))[9, 0]
        found, wanted = projected_to(Given, weight, result)
        assert_same_bits(found, wanted)
        assert torch.equal(wanted, weight) == (steps < 1)


@pytest.mark.parametrize("row", [0, 1, 50, 200, 399])
def test_a_unit_that_is_small_among_large_ones_counts_in_whichever_block_it_is(row):
    weight = torch.ones(400, 1500)
    weight[row] = 1e-3
    result = weight.clone()
    result[row, 7] += 2.0 * Given().tolerance(weight, Site.alone(weight))[row, 0]
    found, wanted = projected_to(Given, weight, result)
    assert_same_bits(found, wanted)
    assert torch.equal(found, result)


@pytest.mark.parametrize("scale", [0.6, 0.4])
def test_a_tolerance_for_every_value_is_asked_value_by_value(scale):
    weight = torch.tensor([[1.0, 8.0], [1.0, 1.0]])
    result = weight.clone()
    result[0, 1] /= scale
    found, wanted = projected_to(InAFactorOfTwo, weight, result)
    assert_same_bits(found, wanted)
    assert torch.equal(wanted, weight) == (scale > 0.5)


def test_a_tolerance_that_was_rounded_up_is_kept_to():
    """In float16 that of weights below 0.003 is subnormal."""
    result = torch.tensor([[1.6 * 2**-14, 0.0]], dtype=torch.float16)
    weight = result.clone()
    weight[0, 1] = 2**-23
    found, wanted = projected_to(Given, weight, result)
    assert torch.equal(wanted, weight)
    assert_same_bits(found, wanted)


@pytest.mark.parametrize("module", [None, torch.nn.ConvTranspose2d(6, 6, 2)])
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (0, 6, 2, 2)])
@pytest.mark.parametrize("kind", [Given, InAFactorOfTwo, Jointly])
def test_a_weight_without_values_is_inside(shape, module, kind):
    weight = torch.ones(shape)
    plugin = type("Empty", (kind,), {"result": weight})()
    site = Site.alone(weight, module)
    plugin.project_all_([weight], [site])
    assert plugin.holds(weight, site)


@pytest.mark.parametrize("tolerance", [0, 0.0, 1, torch.tensor(1.0)])
def test_a_tolerance_may_be_any_number(tolerance):
    kind = type("Within", (Given,), {"tolerance": lambda *_: tolerance})
    weight = torch.zeros(2, 3)
    for off in (0.5, 2.0):
        found, wanted = projected_to(kind, weight, weight + off)
        assert_same_bits(found, wanted)
        assert torch.equal(wanted, weight) == (off <= tolerance)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("last", [0.0, 1e-9, 1e-3, torch.nan])
def test_of_a_large_weight_the_last_value_counts_too(last, turned):
    weight = torch.ones(1000, 700).T if turned else torch.ones(1000, 700)
    result = weight.clone()
    result[-1, -1] += last
    found, wanted = projected_to(Given, weight, result)
    assert_same_bits(found, wanted)
    assert torch.equal(wanted, weight) == (last < 1e-6)


@pytest.mark.parametrize("kind", [Given, GivenByUnits])
def test_a_small_unit_is_asked_for_its_own_tolerance(kind):
    weight = torch.ones(1000, 700)
    weight[-1] = 1e4
    result = weight.clone()
    result[0, 0] += 1e-4
    found, wanted = projected_to(kind, weight, result)
    assert torch.equal(wanted, result)
    assert_same_bits(found, wanted)


def test_of_small_weights_that_go_together_those_inside_stay():
    generator = torch.Generator().manual_seed(0)
    weights = [size * torch.randn(5, 8, generator=generator) for size in (0.1, 10.0, 0.1, 0.1)]
    weights[1][2] *= 0.01
    found = [weight.clone() for weight in weights]
    NearlyTheBall().project_all_(found, [Site.alone(weight) for weight in found])
    assert_same_bits(found[0], weights[0])
    assert_same_bits(found[2], weights[2])
    assert_same_bits(found[3], weights[3])
    assert_same_bits(found[1][2], weights[1][2])
    torch.testing.assert_close(found[1][[0, 1, 3, 4]].norm(dim=1), torch.ones(4))
    assert all(NearlyTheBall().holds(weight, Site.alone(weight)) for weight in found)
