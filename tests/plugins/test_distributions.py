"""Distributions, both ways: in several passes, and in one that Numba compiles."""

import math
import os
import subprocess
import sys

import pytest
import torch
from weightsmith_plugins.probes import buckets, distributions, histogram, one_pass

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=["several passes", "one pass"])
def way(request, monkeypatch):
    """How a distribution is found."""
    compiled = one_pass.in_one_pass if request.param == "one pass" else None
    monkeypatch.setattr(distributions, "_compiled", lambda _: compiled)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bucket_looked_up_is_the_bucket_searched_for_whatever_the_bits(dtype):
    size = torch.finfo(dtype).bits // 16
    bits = torch.randint(-(2**15), 2**15, (400_000 * size,), generator=torch.Generator().manual_seed(0))
    anything = bits.to(torch.int16).view(dtype)  # NaN, infinities, zeros and subnormal numbers among them
    edges = buckets._edges(torch.float64, torch.device("cpu")).to(dtype)
    near = [torch.nextafter(edges.float(), torch.full_like(edges.float(), end)) for end in (-math.inf, math.inf)]
    numbers = torch.cat([anything, edges, *(side.to(dtype) for side in near)])
    searched = buckets.by_search(numbers)
    assert (buckets.by_lookup(numbers) == searched).all()
    if dtype in (torch.float32, torch.float64):
        assert (one_pass.in_one_pass(numbers).counts == searched).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 3000, 200_000, 2_200_000])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_numbers_of_a_distribution_are_those_of_exact_arithmetic(way, dtype, size, scale):
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(dtype)
    values[::7] = 0
    values[::11] = torch.finfo(dtype).smallest_normal / 4
    values[::1001] = math.nan
    found, exact = histogram(values), values.double()[values.isfinite()]
    assert found.count == len(exact) == found.counts.sum()
    assert found.nonfinite == size - len(exact)
    assert found.zeros == int((exact == 0).sum())
    assert found.subnormal == int(((exact != 0) & (exact.abs() < torch.finfo(dtype).smallest_normal)).sum())
    if len(exact):
        assert (found.minimum.item(), found.maximum.item()) == (exact.min().item(), exact.max().item())
        room = 1e-6 * exact.abs().sum().item() + size * torch.finfo(dtype).smallest_normal
        assert found.total.item() == pytest.approx(exact.sum().item(), abs=room)
        assert found.total_squares.item() == pytest.approx(exact.square().sum().item(), rel=2e-6, abs=1e-70)


SIGNS = {
    "positive": lambda x: x.abs(),
    "negative": lambda x: -x.abs(),
    "positive and 0": lambda x: x.clamp(min=0.0),
    "negative and -0": lambda x: -(-x).clamp(min=0.0),
    "0 and -0": lambda x: x * 0.0,
    "positive, then both": lambda x: torch.cat([x.abs(), x]),
    "negative, then positive": lambda x: torch.cat([-x.abs(), x.abs()]),
    "positive, NaN and infinities": lambda x: torch.where(
        x > 0.5, x, torch.tensor([math.nan, math.inf, -math.inf])[torch.arange(len(x)) % 3]
    ),
}


@pytest.mark.parametrize("sign", list(SIGNS))
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 4095, 4096, 4097, 8193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_the_least_and_the_largest_whatever_the_signs(way, sign, size, dtype):
    values = SIGNS[sign](torch.randn(size, generator=torch.Generator().manual_seed(size))).to(dtype)
    found, exact = histogram(values), values[values.isfinite()]
    assert found.count == len(exact)
    assert (found.counts == torch.from_numpy(buckets.by_search(values)[:-1])).all()
    if len(exact):
        assert (found.minimum.item(), found.maximum.item()) == (exact.min().item(), exact.max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("largest", [0.01, 1.0, 3.0])
@pytest.mark.parametrize("with_one", [False, True])
def test_sums_of_subnormal_numbers_are_those_of_exact_arithmetic(way, dtype, largest, with_one):
    smallest_normal, size = torch.finfo(dtype).smallest_normal, 70_000
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.3
    values = (drawn * largest * smallest_normal).to(dtype)
    values[-1] = 1.0 if with_one else values[-1]
    found, exact = histogram(values), [float(value) for value in values.tolist()]
    assert found.subnormal > 0
    assert found.total.item() == pytest.approx(math.fsum(exact), rel=1e-6, abs=0)
    assert found.total_squares.item() == pytest.approx(math.fsum(value * value for value in exact), rel=2e-6, abs=0)


def test_a_layout_changes_no_distribution(way):
    weight = torch.randn(6, 4, 3, 3)
    wanted = histogram(weight.contiguous())
    for turned in (weight.to(memory_format=torch.channels_last), weight.transpose(0, 2)):
        assert torch.equal(histogram(turned).counts, wanted.counts)
    strided = weight[:, ::2]
    assert torch.equal(histogram(strided).counts, histogram(strided.contiguous()).counts)


@pytest.mark.parametrize("constant", [0.0, -0.0, 1.0, 1e-13, -1e-13, 3e38, math.inf])
def test_equal_numbers_fall_into_one_bucket(way, constant):
    found = histogram(torch.full((70_000,), constant))
    assert found.count == (70_000 if math.isfinite(constant) else 0)
    if found.count:
        (bucket,) = found.counts.nonzero().flatten().tolist()
        assert found.counts[bucket] == 70_000
        assert constant < found.limits[bucket]
        assert bucket == 0 or found.limits[bucket - 1] <= constant
        assert found.minimum == found.maximum == torch.tensor(constant)


@pytest.fixture
def afresh():
    """Whether Numba works is asked again, before and after."""
    distributions._compiled.cache_clear()
    yield
    distributions._compiled.cache_clear()


def test_without_numba_there_are_several_passes(afresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "weightsmith_plugins.probes.one_pass")
    assert distributions._compiled(torch.float32) is None
    assert histogram(torch.tensor([1.0, 2.0])).count == 2


def test_where_numba_fails_there_are_several_passes_and_a_warning(afresh, monkeypatch, caplog):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(one_pass, "_look", fail)
    assert histogram(torch.tensor([1.0, 2.0])).count == histogram(torch.tensor([3.0, 2.0])).count == 2
    assert [record.getMessage() for record in caplog.records] == [
        "distributions are found the slower way, as Numba fails: OSError: No space left on device"
    ]


def in_a_process_of_its_own(environment, asks="is not None"):
    program = (
        "import torch; from weightsmith_plugins.probes import buckets, distributions, histogram\n"
        "for dtype in (torch.float32, torch.float64):\n"
        "    values = torch.arange(-1000, 8000, dtype=dtype)\n"
        "    assert (histogram(values).counts.numpy() == buckets.by_search(values)[:-1]).all()\n"
        f"assert distributions._compiled(torch.float32) {asks}"
    )
    environment = {**environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, check=True, timeout=120)


def test_where_nothing_can_be_written_it_is_compiled_all_the_same(tmp_path):
    """No place for the cache: Numba would refuse."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    in_a_process_of_its_own({"PATH": "", "NUMBA_CACHE_DIR": str(nowhere / "cache"), "HOME": str(nowhere)})


def test_a_damaged_cache_ends_no_run(tmp_path):
    environment = {"PATH": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    in_a_process_of_its_own(environment)
    written = list(tmp_path.rglob("*.nbi"))
    assert written
    for file in written:
        file.write_bytes(b"")
    in_a_process_of_its_own(environment, "is None")


def test_counts_are_right_where_numba_leaves_the_code_as_it_is(tmp_path):
    in_a_process_of_its_own({"PATH": "", "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "0"})


def test_where_numba_is_told_to_compile_nothing_there_are_several_passes():
    in_a_process_of_its_own({"PATH": "", "NUMBA_DISABLE_JIT": "1"}, "is None")


class Parts:
    """A site of a weight of which this process holds a part, alone; what is asked of all is asked on a device."""

    is_whole = False

    def total(self, here):
        assert here.device.type == "meta"
        return torch.zeros(here.shape, dtype=here.dtype)

    most = total


def test_what_is_found_of_a_part_is_added_up_on_its_device(monkeypatch):
    """Whatever that is: the numbers themselves are in main memory."""
    found = histogram(torch.tensor([1.0, 2.0]))
    monkeypatch.setattr(distributions, "histogram", lambda _: found)
    whole = distributions.joint_histogram(torch.empty(2, device="meta"), Parts())
    assert {whole.counts.device.type, whole.total.device.type, whole.minimum.device.type} == {"cpu"}
