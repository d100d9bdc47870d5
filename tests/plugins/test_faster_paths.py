"""A faster path never changes a result: the plural forms, which stack, block and sample, against the plain formulas,
weight by weight, on whatever shapes, layouts, dtypes, ties and special values there are."""

import dataclasses
import runpy
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from weightsmith import Average, Constraint, GradientEditor, Penalty, Site, WeightEditor, rows
from weightsmith.ranking import in_blocks, keep_largest_, largest
from weightsmith.schedules import Progress
from weightsmith.tensors import accurate_dtype
from weightsmith.testing.scenes import plural, singular
from weightsmith_plugins import L1, L2, ElasticNet, GroupLasso, Intersection, Orthonormal
from weightsmith_plugins.constraints import spectra
from weightsmith_plugins.native import compiling
from weightsmith_plugins.sparsity.one_pass import passes_over

TABLE = Path(__file__).with_name("test_conformance.py")
CASES = runpy.run_path(str(TABLE))["CASES"]  # by its path: others import it by its name, with files of their own

PLURAL = {
    Constraint: "project_all_",
    Penalty: "gradient_all_",
    GradientEditor: "edit_all_",
    WeightEditor: "edit_all_",
    Average: "average_all_",
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FLAVOURS = ["normal", "ties", "zeros", "subnormal", "huge", "nan", "infinite"]
LAYOUTS = ["contiguous", "transposed", "strided", "channels last"]


def has_faster_path(plugin):
    kind = next((kind for kind in PLURAL if isinstance(plugin, kind)), None)
    if kind is None or getattr(plugin, "mode", "loss") not in ("loss", "project"):
        return False
    if isinstance(plugin, Intersection) and not plugin._is_convex():
        return False  # of several nearest points it finds one
    own = getattr(type(plugin), PLURAL[kind]) is not getattr(kind, PLURAL[kind])
    return own or plugin.unitwise


PLUGINS = {
    f"{number} {type(case.plugin).__name__}": dataclasses.replace(case, plugin=case.plugin.resolved(Progress()))
    for number, case in enumerate(CASES)
    if has_faster_path(case.plugin)
}
DECOMPOSES = ("Orthonormal", "SpectralBound", "LowRank", "PositiveDefinite", "Orthogonalize", "NuclearNorm")


def values(shape, flavour, dtype, generator):
    """Values of a kind; of the special ones, beside ordinary ones."""
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    limits = torch.finfo(dtype)
    if flavour == "ties":
        drawn = drawn.round()  # few values, and −0 beside 0
    elif flavour == "zeros":
        drawn = drawn * (torch.rand(shape, generator=generator) < 0.3)
    elif flavour == "subnormal":
        drawn = drawn * limits.tiny * 0.1
    elif flavour == "huge":
        drawn = drawn * (limits.max * 1e-3)  # whose squares are infinite, and whose sums are not
    elif flavour == "nan":
        drawn[torch.rand(shape, generator=generator) < 0.1] = torch.nan
    elif flavour == "infinite":
        chosen = torch.rand(shape, generator=generator)
        drawn[chosen < 0.1], drawn[chosen > 0.9] = torch.inf, -torch.inf
    return drawn.to(dtype)


def laid_out(tensor, layout):
    if layout == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "channels last" and tensor.ndim == 4:
        return tensor.to(memory_format=torch.channels_last)
    return tensor


def assert_same(plugin, columns, spans_weights):
    """Both forms give the same, special values in the same places."""
    if spans_weights:
        columns = [column[:1] for column in columns]
    found = plural(plugin, *columns) if len(columns) > 1 else plural(plugin, columns[0])
    for number, (one, *tensors) in enumerate(zip(found, *columns, strict=True)):
        plain = singular(plugin, tensors, number)
        limits = torch.finfo(accurate_dtype(plain.dtype) if plain.dtype == torch.float32 else plain.dtype)
        largest = float(plain.double().nan_to_num(0, 0, 0).abs().max()) if plain.numel() else 0.0
        torch.testing.assert_close(
            one, plain, rtol=64 * limits.eps, atol=4 * limits.eps * largest + limits.tiny, equal_nan=True
        )


def columns_for(plugin, shapes, flavour, dtype, layout, generator):
    takes_two = isinstance(plugin, (GradientEditor, WeightEditor, Average))
    return [
        [laid_out(values(shape, flavour, dtype, generator), layout) for shape in shapes]
        for _ in range(2 if takes_two else 1)
    ]


def takes_any_shape(case):
    """Whether the table does not say what shapes it takes, and no decomposition makes it slow or lets it turn."""
    fields = {field.name: field.default for field in dataclasses.fields(case)}
    return case.shapes == fields["shapes"] and not type(case.plugin).__name__.startswith((*DECOMPOSES, "Intersection"))


def shapes_for(case):
    """Those that a plugin takes: of its own table, if that says what they are."""
    if not takes_any_shape(case):
        return st.lists(st.sampled_from(list(case.shapes)), min_size=1, max_size=4)
    sides = st.integers(1, 7)
    return st.lists(
        st.one_of(st.tuples(sides), st.tuples(sides, sides), st.tuples(sides, sides, sides, sides)),
        min_size=1,
        max_size=4,
    )


@pytest.fixture(params=["torch", "Numba"], scope="module")
def way(request):
    """What passes over many weights at once, however few they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "LEAST_TOGETHER", 2)
        patch.setattr("weightsmith.tensors._FEW_BOUNDED", 0)
        patch.setattr(compiling, "_LEAST", {})
        if request.param == "torch":
            patch.setattr(compiling, "_tried", lambda name: None)
        else:
            assert all(compiling.compiled_function(name, [torch.ones(1)]) for name in compiling._USERS)
        yield request.param


def ways(names):
    """By torch's functions, and compiled where Numba compiles it."""
    compiled = ("Norm", "TopK", "L1", "ElasticNet", "GroupLasso", "AdaptiveClip")
    return [(way, name) for name in names for way in ("torch", "Numba") if way == "torch" or name.endswith(compiled)]


@pytest.mark.parametrize(
    ("way", "name"), ways(name for name in PLUGINS if not name.endswith(DECOMPOSES)), indirect=["way"]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_small_weights_together_come_out_as_each_alone(way, name, data):
    case = PLUGINS[name]
    shapes = data.draw(shapes_for(case), "shapes")
    flavour, layout = data.draw(st.sampled_from(FLAVOURS), "values"), data.draw(st.sampled_from(LAYOUTS), "layout")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32), "seed"))
    columns = columns_for(case.plugin, shapes, flavour, dtype, layout, generator)
    assert_same(case.plugin, columns, case.spans_weights)


LARGE = [(1400, 400), (3, 70_000), (64, 32, 3, 3)]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("way", "name"), ways(name for name, case in PLUGINS.items() if takes_any_shape(case)), indirect=["way"]
)
def test_large_weights_come_out_as_by_the_plain_formula(way, name, flavour):
    """With other paths than small ones: in blocks, by a sample, in place."""
    case = PLUGINS[name]
    generator = torch.Generator().manual_seed(0)
    columns = columns_for(case.plugin, LARGE, flavour, torch.float32, "contiguous", generator)
    for place in range(len(LARGE)):
        assert_same(case.plugin, [column[place : place + 1] for column in columns], case.spans_weights)


BY = {"NumPy": in_blocks, "Numba": passes_over}
SIZES = {
    "few": [(10, 16), (7,), (30,)],
    "small": [(64, 64), (30,)] * 30,
    "large": LARGE,
    "both": [(40, 40), (1400, 400), (7,), (64, 64), (3, 70_000)],
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("by", BY)
def test_the_largest_of_all_are_kept_as_in_one_row(by, sizes, flavour, share, dtype):
    """Up to about as many as there are, 0.95."""
    generator = torch.Generator().manual_seed(0)
    weights = [values(shape, flavour, dtype, generator) for shape in SIZES[sizes]]
    masks = [torch.rand(shape, generator=generator) < 0.95 for shape in SIZES[sizes]]
    count = int(share * sum(weight.numel() for weight in weights))
    row, standing = (torch.cat([tensor.reshape(-1) for tensor in tensors]) for tensors in (weights, masks))
    scores = row.abs().masked_fill(~standing, 0).nan_to_num(torch.inf, torch.inf)
    expected = largest(scores[None], count)[0] & standing
    given, were = [weight.clone() for weight in weights], [mask.clone() for mask in masks]
    passes = BY[by](given, were)
    if passes is None:
        assert (by, dtype) == ("Numba", torch.float64)
        return
    was_done = keep_largest_(passes, count)
    least = float(scores.sort(descending=True).values[count - 1])
    assert was_done == (0 < least < torch.inf)
    if not was_done:
        assert all(map(torch.equal, masks, were))
        return
    found = torch.cat([mask.reshape(-1) for mask in were])
    assert torch.equal(found, expected)
    kept = torch.cat([weight.reshape(-1) for weight in given])
    torch.testing.assert_close(kept, row.masked_fill(~expected, 0), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(64, 64), (20, 300), (300, 20), (256, 256), (768, 96)])
@pytest.mark.parametrize("off", [1e-4, 1e-2, 0.1, 0.3, 3.0])
def test_the_nearest_orthonormal_matrix_is_the_one_that_singular_values_give(dtype, shape, off):
    """By a series up to ‖WWᵀ − I‖₂ = 0.5, beyond by a decomposition; a second time nothing moves."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(max(shape), min(shape), dtype=torch.float64, generator=generator)
    exact = torch.linalg.qr(drawn)[0]
    noise = torch.randn(exact.shape, dtype=torch.float64, generator=generator)
    near = (exact + off * noise / torch.linalg.matrix_norm(noise, 2)).to(dtype)
    weight = near if shape[0] >= shape[1] else near.mT.contiguous()
    found = Orthonormal()(weight)
    left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    assert float((found.double() - left @ right).abs().max()) < (1e-6 if dtype is torch.float32 else 1e-14)
    assert torch.equal(Orthonormal()(found), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [1e-5, 1e-3, 0.02, 0.07, 0.15, 0.199, 0.24, 0.3, 0.45, 0.499])
def test_the_series_of_the_inverse_root_is_exact_to_rounding(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=generator))[0]
    values = torch.linspace(-bound, bound, 60, dtype=torch.float64)
    excess = ((turned * values) @ turned.T).to(dtype)
    found = spectra._inverse_root(excess, excess @ excess, bound)
    error = torch.linalg.matrix_norm(found.double() - (turned * (1 + values).rsqrt()) @ turned.T, 2)
    assert error < 12 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [0.1, 0.199, 0.24, 0.45])
def test_what_became_orthonormal_is_so(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        left, _, right = torch.linalg.svd(torch.randn(256, 256, generator=generator, dtype=dtype))
        excess = torch.rand(256, generator=generator, dtype=dtype) * 2 - 1
        excess *= bound / excess.pow(4).sum() ** 0.25
        weight = left * (1 + excess).sqrt() @ right
        assert Orthonormal().holds(Orthonormal()(weight), Site.alone(weight))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.2499), (torch.float32, 0.34), (torch.float64, 0.1)])
def test_a_large_matrix_that_became_orthonormal_moves_no_more(dtype, bound):
    """The rounding of whose products adds up; one singular value is far from the others."""
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(768, 768, generator=generator, dtype=dtype))
    excess = torch.zeros(768, dtype=dtype)
    excess[0] = -bound
    found = Orthonormal()(left * (1 + excess).sqrt() @ right)
    assert torch.equal(Orthonormal()(found), found)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("standing", [0, 3])
def test_where_hardly_any_is_kept_they_are_ranked_all_the_same(standing, first, by):
    """Whether or not a sample meets them."""
    weight, mask = torch.randn(2**20), torch.zeros(2**20, dtype=torch.bool)
    mask[first : first + standing] = True
    scores, was = weight.abs() * mask, weight.clone()
    if keep_largest_(BY[by]([weight], [mask]), 2):
        assert standing
        assert torch.equal(mask.nonzero().flatten(), scores.topk(2).indices.sort().values)
        assert torch.equal(weight, was * mask)
    else:
        assert torch.equal(weight, was)
        assert int(mask.sum()) == standing


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("share", [0.001, 0.2, 0.7])
@pytest.mark.parametrize("more", [0, 1, 100])
def test_a_sample_finds_the_least_where_all_or_nearly_all_that_are_kept_stay_so(more, share, by):
    """As when sparsity does not grow any more."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(2**20, generator=generator)
        mask = torch.rand(2**20, generator=generator) < share
        count, scores = int(mask.sum()) - more, weight.abs() * mask
        assert keep_largest_(BY[by]([weight], [mask]), count)
        assert torch.equal(mask.nonzero().flatten(), scores.topk(count).indices.sort().values)


@pytest.mark.parametrize("by", BY)
def test_parameters_are_ranked_in_place_and_count_it(by):
    """Also where gradients are on; but nothing compiled writes to what asks for gradients then."""
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in [(100, 100)] * 10 + [(300, 300)]]
    versions = [weight._version for weight in weights]
    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    if by == "Numba":
        assert BY[by](weights, masks) is None
    with torch.set_grad_enabled(by == "NumPy"):
        assert keep_largest_(BY[by](weights, masks), 10_000)
    assert sum(int(weight.count_nonzero()) for weight in weights) == 10_000
    assert all(weight._version > before for weight, before in zip(weights, versions, strict=True))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("total", [2**14 - 1, 2**14, 2**14 + 1, 17 * 19 * 60, 2**19 + 1])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_sample_of_any_size_leaves_those_that_are_largest(total, share, by):
    """Also where many values are 0, of which none is sorted out."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(total, generator=generator) * (torch.rand(total, generator=generator) >= share)
    mask, count = torch.ones(total, dtype=torch.bool), total // 20
    passes = BY[by]([weight], [mask])
    between, asked = passes.between, []
    passes.between = lambda low, high: asked.append(low) or between(low, high)
    wanted = weight.abs().topk(count).indices.sort().values
    assert keep_largest_(passes, count)
    assert torch.equal(mask.nonzero().flatten(), wanted)
    assert bool(asked) == (total >= 2**14)
    assert all(low > 0 for low in asked)


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, and that are still there."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_in((args, kwargs))}
        for storage in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors_in(result)}.values():
            if storage.data_ptr() not in given:
                self.now += storage.nbytes()
                weakref.finalize(storage, self.let_go, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def let_go(self, size):
        self.now -= size


def tensors_in(nested):
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1), ElasticNet(0.1, 0.1), GroupLasso(0.1)], ids=repr)
def test_a_penalty_on_large_weights_takes_little_memory(penalty):
    """At most 8 MB, where the gradient alone has 37."""
    weights, gradients = ([torch.randn(3072, 768) for _ in range(4)] for _ in range(2))
    sites = [Site.alone(weight) for weight in weights]
    with torch.no_grad(), Held() as held:
        penalty.gradient_all_(gradients, weights, sites)
    assert held.most < 8e6
