"""What Numba compiles for masks and for pruning, against torch's way and sorting."""

import itertools
import math

import numpy as np
import pytest
import torch
import weightsmith_plugins as w
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from weightsmith import Site, Trainer, ranking
from weightsmith.ranking import in_blocks, keep_largest_, largest_of_groups
from weightsmith.tensors import keep_
from weightsmith_plugins.native import compiling
from weightsmith_plugins.sparsity import one_pass
from weightsmith_plugins.sparsity.masks import mask_

SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-42, -1e-42, 3e38, math.inf, -math.inf, math.nan])


@pytest.fixture(autouse=True)
def _with_numba(request):
    if "afresh" not in request.fixturenames:
        assert all(compiling._tried(name) for name in one_pass._TRIALS)


@pytest.fixture
def afresh():
    """Whether Numba works is asked again, before and after."""
    compiling._tried.cache_clear()
    yield
    compiling._tried.cache_clear()


def drawn(shape, generator):
    """Ordinary numbers, and others."""
    values = torch.randn(shape, generator=generator)
    special = SPECIAL[torch.randint(0, len(SPECIAL), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.2, special, values)


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


shapes = st.lists(
    st.sampled_from([(1,), (7,), (33, 5), (64, 64), (3, 2, 2, 2), (5000,), (0, 3)]), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([(), (1,), (3,), (3, 3)]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_of_four_inputs_those_stay_that_torch_lets_stay(count, units, groups, kernel, are_few_numbers, seed):
    generator = torch.Generator().manual_seed(seed)
    start = drawn((units, 4 * groups, *kernel), generator)
    if are_few_numbers:  # so that many are alike
        start = SPECIAL[torch.randint(0, len(SPECIAL), start.shape, generator=generator)]
    wanted = start.clone()
    keep_(wanted, largest_of_groups(start.abs(), 1, count, 4))
    if not kernel:
        found = start.clone()
        assert not one_pass.keep_of_fours_([found], count, by_rows=[True])
        assert torch.equal(bits(found), bits(wanted))
    turned = start.transpose(0, 1).contiguous().transpose(0, 1)
    several = [start.clone(), turned.clone(), start.double(), torch.ones(3, 4), start.clone()]
    w.NofM(count, 4).project_all_(several, [Site.alone(weight) for weight in several])
    for weight in (*several[:3], several[4]):
        assert torch.equal(bits(weight.float()), bits(wanted))
    assert several[3].count_nonzero() == 3 * count


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 10**6))
def test_masks_put_the_zeros_that_torch_puts(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [drawn(shape, generator) for shape in shapes]
    masks = [torch.rand(shape, generator=generator) < 0.5 for shape in shapes]
    wanted, were, versions = [x.clone() for x in weights], [m.clone() for m in masks], [x._version for x in weights]
    for weight, mask in zip(wanted, masks, strict=True):
        keep_(weight, mask)
    assert not one_pass.masked_(weights, masks)
    assert all(torch.equal(bits(one), bits(other)) for one, other in zip(weights, wanted, strict=True))
    assert all(map(torch.equal, masks, were))
    assert all(weight._version > version for weight, version in zip(weights, versions, strict=True))


def test_what_is_not_for_it_is_left_to_torch():
    weights = [torch.ones(4, 4) for _ in range(5)] + [torch.ones(3)]
    masks = [torch.zeros(weight.shape, dtype=torch.bool) for weight in weights]
    weights[1], weights[2] = weights[1].double(), torch.ones(8, 4)[::2]
    masks[3], masks[4] = masks[3].to(torch.uint8), torch.zeros(8, 4, dtype=torch.bool)[::2]
    assert list(one_pass.masked_(weights, masks)) == [1, 2, 3, 4]
    assert [float(weight.sum()) for weight in weights] == [0, 16, 16, 16, 16, 0]
    mask_(weights, masks)
    assert [float(weight.sum()) for weight in weights] == [0] * 6
    assert one_pass.passes_over(weights, masks) is None


@pytest.mark.parametrize("byte", [2, 254, 255])
def test_every_byte_of_a_mask_that_is_not_0_stands_for_true(byte):
    """As to torch. In memory there may be others than 1."""
    start = torch.randn(2**17, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(2**17, generator=torch.Generator().manual_seed(1)) < 0.5
    mask = (kept.to(torch.uint8) * byte).view(torch.bool)
    weight = start.clone()
    assert not one_pass.masked_([weight], [mask])
    assert torch.equal(weight, start * kept)
    for count in (int(kept.sum()), 1000):
        weight = start.clone()
        passes = one_pass.passes_over([weight], [mask])
        passes.sample(1)
        assert keep_largest_(passes, count)
        expected = (start.abs() * kept).sort(descending=True, stable=True).indices[:count].sort().values
        assert torch.equal(weight.nonzero().view(-1), expected)
        assert torch.equal(mask.view(torch.uint8).nonzero().view(-1), expected)


sizes = st.lists(st.sampled_from([0, 1, 7, 8, 63, 4095, 4096, 4097, 9000]), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(sizes, st.sampled_from([1, 2, 3, 17, 5000]), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 10**6))
def test_its_passes_look_at_what_numpy_looks_at(sizes, step, share, seed):
    """And write nothing behind the room that there is, where a canary would notice it."""
    generator = torch.Generator().manual_seed(seed)
    weights = [drawn((size,), generator) for size in sizes]
    masks = [torch.rand(size, generator=generator) < share for size in sizes]
    passes = one_pass.passes_over(weights, masks)
    if not sum(sizes):
        return
    row, kept = torch.cat(weights), torch.cat(masks)
    found = np.full(-(-len(row) // step) + 1, -7, np.int32)
    count = one_pass._sample(passes._table, step, found[:-1])
    assert found[-1] == -7
    wanted = row[::step][kept[::step]].abs()
    assert torch.equal(torch.from_numpy(found[:count]), bits(wanted))
    assert passes.sample(step)[1] == len(row[::step])
    ends = row.nan_to_num(0.5).abs().quantile(torch.tensor([0.3, 0.8])).tolist() if len(row) < 10**5 else (0.5, 1.0)
    above, between = passes.between(*ends)
    by_numpy = in_blocks(weights, masks).between(*ends)
    assert above == by_numpy[0]
    assert np.array_equal(between, by_numpy[1])
    for room in (0, len(between), len(between) + one_pass._BLOCK):
        found = np.full(room + 1, -7, np.int32)
        limits = (np.float32(end).view(np.int32) for end in ends)
        assert one_pass._look_between(passes._table, *limits, found[:-1], 0, 1) == (above, len(between))
        assert found[-1] == -7


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([(70_000,), (300, 300), (64, 64), (5,), (4097,)]), min_size=1, max_size=5),
    st.sampled_from([0.001, 0.1, 0.5, 0.9]),
    st.sampled_from(["all", "half", "few"]),
    st.sampled_from([1, 5, 10**6]),
    st.integers(0, 10**6),
)
def test_it_keeps_what_numpy_keeps(shapes, share, standing, steps, seed):
    """With few steps all values are ties."""
    generator = torch.Generator().manual_seed(seed)
    weights = [(torch.randn(shape, generator=generator) * steps).round() / steps for shape in shapes]
    share_standing = {"all": 1.0, "half": 0.5, "few": 0.01}[standing]
    masks = [torch.rand(shape, generator=generator) < share_standing for shape in shapes]
    count = max(1, int(share * sum(mask.numel() for mask in masks)))
    ways = []
    for make in (in_blocks, one_pass.passes_over):
        written, kept = [x.clone() for x in weights], [m.clone() for m in masks]
        ways.append((keep_largest_(make(written, kept), count), written, kept))
    (was_done, *expected), (was_done_too, *found) = ways
    assert was_done == was_done_too
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [in_blocks, one_pass.passes_over])
def test_nan_and_infinity_count_as_the_largest_beside_ties(make):
    weight = torch.cat([torch.full((10,), -math.nan), torch.full((10,), -math.inf), torch.ones(70_000), torch.zeros(9)])
    weight, mask = weight.flip(0).contiguous(), torch.ones(len(weight), dtype=torch.bool)
    assert keep_largest_(make([weight], [mask]), 50)
    assert torch.equal(mask.nonzero().view(-1), torch.cat([torch.arange(9, 39), torch.arange(70_009, 70_029)]))
    assert int(weight.isnan().sum()) == int(weight.isinf().sum()) == 10


@pytest.mark.parametrize("make", [in_blocks, one_pass.passes_over])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("pattern", ["centres", "columns", "rows", "sorted"])
def test_a_sample_is_not_misled_by_a_pattern_of_the_shape(pattern, share, make):
    generator = torch.Generator().manual_seed(0)
    if pattern == "centres":
        weight = torch.randn(512, 512, 3, 3, generator=generator)
        weight[..., 1, 1] *= 3
    else:
        weight = torch.randn(2048, 2048, generator=generator)
        if pattern == "sorted":
            weight = weight.view(-1).abs().sort().values
        else:
            weight[:, ::64] *= 4
            weight = weight.T.contiguous() if pattern == "rows" else weight
    mask, count, start = torch.ones_like(weight, dtype=torch.bool), int(share * weight.numel()), weight.clone()
    assert keep_largest_(make([weight], [mask]), count)
    expected = start.view(-1).abs().sort(descending=True, stable=True).indices[:count].sort().values
    assert torch.equal(mask.view(-1).nonzero().view(-1), expected)


@pytest.mark.parametrize("total", [2**19, 9 * 2**18, 85_000_000])
def test_the_steps_of_samples_have_no_factor_with_usual_shapes(total):
    first, second = ranking._steps(total)
    assert 17 <= first < second < first + 20
    for step in (first, second):
        assert all(step % factor for factor in (2, 3, 5, 7, 11, 13))
        assert 2**14 < total // step <= 2**18


@pytest.mark.parametrize("make", [in_blocks, one_pass.passes_over])
@pytest.mark.parametrize("zeros", [0, 1])
def test_what_is_kept_stays_where_just_so_many_are_and_none_is_zero(zeros, make):
    """However few there are; momentum moves what is not kept."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in [(30, 30), (100,)]]
    masks = [torch.rand(weight.shape, generator=generator) < 0.3 for weight in weights]
    count = sum(int(mask.sum()) for mask in masks)
    wanted, were = [weight * mask for weight, mask in zip(weights, masks, strict=True)], [m.clone() for m in masks]
    if zeros:
        place = masks[0].nonzero()[0].tolist()
        weights[0][*place] = wanted[0][*place] = -0.0
    versions = [tensor._version for tensor in (*weights, *masks)]
    assert keep_largest_(make(weights, masks), count) == (not zeros)
    assert all(map(torch.equal, weights, wanted))
    assert all(map(torch.equal, masks, were))
    assert all(tensor._version > before for tensor, before in zip((*weights, *masks), versions, strict=True))
    assert keep_largest_(make(weights, masks), count - 1)
    assert sum(int(mask.sum()) for mask in masks) == count - 1


@pytest.mark.parametrize("steps", [3, 10**7])
def test_what_is_kept_does_not_depend_on_threads(steps):
    """With so many values that there is work for several; and where all that is between takes more room than was
    expected."""
    threads, found = torch.get_num_threads(), []
    start = (torch.randn(7_000_000, generator=torch.Generator().manual_seed(0)) * steps).round() / steps
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            weights = [start[:6_000_000].clone().view(2000, 3000), start[6_000_000:].clone()]
            masks = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
            assert keep_largest_(one_pass.passes_over(weights, masks), 700_000)
            found.append([*weights, *masks])
    finally:
        torch.set_num_threads(threads)
    assert sum(int(mask.sum()) for mask in found[0][2:]) == 700_000
    expected = start.abs().sort(descending=True, stable=True).indices[:700_000].sort().values
    kept = torch.cat([mask.view(-1) for mask in found[0][2:]]).nonzero().view(-1)
    assert torch.equal(kept, expected)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def test_nothing_beside_is_written():
    memory, beside = torch.full((200_000,), 3.0), torch.ones(200_000, dtype=torch.bool)
    weight, mask = memory[1001:180_008], beside[1003:180_010]
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    assert keep_largest_(one_pass.passes_over([weight], [mask]), 5000)
    assert int(mask.sum()) == int(weight.count_nonzero()) == 5000
    for whole, part, start in ((memory, weight, 1001), (beside, mask, 1003)):
        assert (whole[:start] == whole[0]).all()
        assert (whole[start + len(part) :] == whole[0]).all()
    assert memory[0] == 3
    assert beside[0]


def pruned():
    """The weights of a model that was pruned to 80 % while it was trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10))
    batches = [(torch.randn(8, 300), torch.randn(8, 10)) for _ in range(3)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    Trainer(model, optimizer, nn.MSELoss(), plugins=[w.MagnitudePruning(0.8, every=2)]).run(batches, max_epochs=2)
    return [parameter.detach() for parameter in model.parameters()]


def test_training_prunes_by_it_and_comes_out_as_without(monkeypatch):
    called = []

    def watched(name):
        called.append(name)
        return getattr(one_pass, name, None)

    monkeypatch.setattr(compiling, "_tried", watched)
    found = pruned()
    assert {"masked_", "passes_over"} <= set(called)
    monkeypatch.setattr(compiling, "_tried", lambda name: None)
    assert all(map(torch.equal, found, pruned()))
    assert sum(int(x.count_nonzero()) for x in (found[0], found[2])) == math.ceil(0.2 * (300 * 300 + 300 * 10))


@pytest.mark.parametrize("name", list(one_pass._TRIALS))
def test_a_trial_goes_well_wherever_it_is_made(afresh, name, caplog):
    for place in (torch.inference_mode(), torch.device("meta"), torch.no_grad()):
        compiling._tried.cache_clear()
        with place:
            assert compiling.compiled_function(name, [torch.ones(1, device="cpu")]) is not None
    assert not caplog.records


@pytest.mark.parametrize("trouble", ["failing", "wrong"])
def test_without_numba_torch_and_numpy_do_it(afresh, trouble, monkeypatch, caplog):
    def fail(*_):
        raise OSError("No space left on device")

    found = pruned()
    compiling._tried.cache_clear()
    monkeypatch.setattr(one_pass, "_mask_all", fail if trouble == "failing" else lambda *_: None)
    monkeypatch.setattr(one_pass, "_keep_all", fail if trouble == "failing" else lambda *_: None)
    assert all(map(torch.equal, pruned(), found))
    why = {
        "failing": ["OSError: No space left on device", "OSError: No space left on device"],
        "wrong": ["ArithmeticError: passes_over made [1.0, -2.0, 0.0", "ArithmeticError: masked_ made [1.0, -2.0, 3.0"],
    }[trouble]
    said = [record.getMessage() for record in caplog.records]
    for message, what, reason in zip(said, ["MagnitudePruning and TopK work", "masks are applied"], why, strict=True):
        assert message.startswith(f"{what} the slower way, as Numba fails: {reason}")


@pytest.mark.parametrize("kernel", ["_count_kept", "_mask_and_count", "_sample", "_look_between", "_keep_all"])
def test_a_kernel_that_fails_is_found_before_anything_is_pruned(afresh, kernel, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(one_pass, kernel, fail)
    assert compiling.compiled_function("passes_over", [torch.ones(1)]) is None


def test_a_subclass_of_keep_zeros_with_a_projection_of_its_own_is_asked():
    class Within(w.KeepZeros):
        def project(self, weight, site):
            return super().project(weight, site).clamp(-0.01, 0.01)

    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight[0] = 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    Trainer(layer, optimizer, nn.MSELoss(), plugins=[Within()]).run(
        [(torch.ones(2, 8), torch.ones(2, 4))], max_epochs=2
    )
    assert not layer.weight[0].any()
    assert layer.weight.abs().max() == 0.01


def test_keep_zeros_remembers_at_its_first_call_where_nothing_was_remembered():
    weight = torch.tensor([[3.0, 0.0]])
    site = Site.alone(weight)
    w.KeepZeros().project_all_([weight], [site])
    weight += 1
    w.KeepZeros().project_all_([weight], [site])
    assert weight.tolist() == [[4, 0]]
    parameter = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        w.KeepZeros().project_all_([parameter], [Site.alone(parameter)])
