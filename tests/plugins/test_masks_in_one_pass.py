"""What Numba compiles for masks and for pruning, against torch's way and sorting."""

import itertools
import math

import pytest
import torch
import weightsmith_plugins as w
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from weightsmith import Trainer
from weightsmith.ranking import in_blocks, keep_largest_
from weightsmith.tensors import keep_
from weightsmith_plugins import compiling
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
    weights = [torch.ones(4, 4), torch.ones(4, 4).double(), torch.ones(4, 4).T[:2], torch.ones(4, 4), torch.ones(3)]
    masks = [torch.zeros(weight.shape, dtype=torch.bool) for weight in weights]
    masks[3] = masks[3].to(torch.uint8)
    weights[2], masks[2] = torch.ones(4, 4), torch.zeros(8, 4, dtype=torch.bool)[::2]
    assert list(one_pass.masked_(weights, masks)) == [1, 2, 3]
    assert [float(weight.sum()) for weight in weights] == [0, 16, 16, 16, 0]
    mask_(weights, masks)
    assert [float(weight.sum()) for weight in weights] == [0] * 5
    assert one_pass.passes_over(weights, masks) is None


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


def pruned(updates=3):
    """The weights of a model that was pruned to 80 % while it was trained, and how often a function was called."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10))
    batches = [(torch.randn(8, 300), torch.randn(8, 10)) for _ in range(updates)]
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
    said = {
        "failing": ["OSError: No space left on device"] * 2,
        "wrong": [
            f"ArithmeticError: {name} made [3.0, -1.0, -4.0, 5.0] of [3.0, -1.0, -4.0, 5.0], and not "
            "[3.0, 0.0, -4.0, 0.0]"
            for name in ("passes_over", "masked_")
        ],
    }[trouble]
    starts = ["MagnitudePruning works", "masks are applied"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{start} the slower way, as Numba fails: {why}" for start, why in zip(starts, said, strict=True)
    ]
