"""Every built-in plugin through the one conformance suite: one row each."""

from pathlib import Path

import pytest
import torch
import weightsmith_plugins as w
from torch import nn
from weightsmith import cubic, exponential, linear
from weightsmith.tensors import unit_norms
from weightsmith.testing import Case, conformance, missing


def row_norms(weight):
    return unit_norms(weight.double(), tuple(range(1, weight.ndim)))


def gram_excess(x):
    rows = x.double().flatten(1)
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
    return (rows @ rows.T - torch.eye(len(rows))).abs()


def nonzero_of_two(x):
    return x.unflatten(1, (-1, 2)).count_nonzero(dim=2)


def on_grid(x):
    peaks = x.double().flatten(1).abs().amax(1)
    places = x.double().flatten(1) / torch.where(peaks > 0, peaks, 1)[:, None] * 7
    return (places - places.round()).abs() <= 1e-5


def square():
    return nn.Linear(4, 4, bias=False)


def convolution():
    return nn.Conv1d(3, 3, 3, padding=1, bias=False)


# The weights of every scene of the suite, under every name that it gives them: arange(16) / 16, of shape (4, 4).
PRETRAINED = Path(__file__).with_name("pretrained.safetensors")

CASES = [
    Case(w.Constant(0.3)),
    Case(w.Scale(2.0)),
    Case(w.KaimingNormal(mode="fan_out", nonlinearity="tanh")),
    Case(w.Orthogonal(gain=1.5)),
    Case(w.Zeros(where="0.weight")),
    Case(w.Ones()),
    Case(w.Values((torch.arange(16.0).reshape(4, 4) / 16).tolist()), shapes=[(4, 4)], layer=square),
    Case(w.Uniform(-0.2, 0.3)),
    Case(w.Normal(0.1, 0.2)),
    Case(w.TruncatedNormal(0.1, 0.5, -1.0, 0.5)),
    Case(w.XavierUniform(gain=0.5)),
    Case(w.XavierNormal()),
    Case(w.KaimingUniform(negative_slope=0.1)),
    Case(w.LecunUniform()),
    Case(w.LecunNormal()),
    Case(w.VarianceScaling(2.0, "fan_avg", "truncated_normal")),
    Case(w.DeltaOrthogonal(0.9), shapes=[(4, 3, 3, 3), (6, 2, 5)], layer=convolution, inputs=(4, 3, 8)),
    Case(w.Identity(0.9), shapes=[(6, 5), (3, 7)]),
    Case(w.Dirac(), shapes=[(4, 3, 3, 3), (6, 2, 5)], layer=convolution, inputs=(4, 3, 8)),
    Case(w.LSUV()),
    Case(w.Pretrained(PRETRAINED, strict=False), shapes=[(4, 4)], layer=square),
    Case(w.Sparse(0.5, std=0.2), shapes=[(6, 5), (3, 7)]),
    Case(w.L1(0.1)),
    Case(w.L1(linear(0.1, 0.0, over=10))),
    Case(w.L2(0.1, where="re:.*weight")),
    Case(w.L2(0.1, mode="decoupled")),
    Case(w.L2(0.1, mode="proximal")),
    Case(w.L1(0.01, mode="proximal")),
    Case(w.GroupLasso(0.1)),
    Case(w.GroupLasso(0.01, mode="proximal")),
    Case(w.ElasticNet(0.1, 0.05)),
    Case(w.ElasticNet(0.01, 0.05, mode="proximal")),
    Case(w.Hoyer(0.1)),
    Case(w.Hoyer(0.01, squared=True)),
    Case(w.NuclearNorm(0.1)),
    Case(w.NuclearNorm(0.05, mode="proximal")),
    Case(w.Orthogonality(0.01)),
    Case(w.SpectralPenalty(0.1)),
    Case(w.L2SP(0.1)),
    Case(w.L2SP(0.1, mode="proximal")),
    Case(w.ElasticConsolidation(0.1, PRETRAINED), shapes=[(4, 4)], layer=square),
    Case(w.ElasticConsolidation(0.1, PRETRAINED, mode="proximal"), shapes=[(4, 4)], layer=square),
    Case(w.ClipNorm(0.5), spans_weights=True),
    Case(w.Centralize()),
    Case(w.AdaptiveClip(0.1)),
    Case(w.ClipUnitNorm(0.5)),
    Case(w.ClipValue(0.5)),
    Case(w.Normalize(2.0)),
    Case(w.Sign()),
    Case(w.Orthogonalize()),
    Case(w.ScaleGradient(0.5)),
    Case(w.Noise(0.1)),
    Case(w.Freeze(), stops_learning=True),
    Case(w.Unfreeze(["*"], linear(0, 1, over=2))),
    Case(w.SkipNonFinite()),
    Case(w.SharpnessAware(0.1)),
    Case(w.SharpnessAware(0.1, adaptive=True)),
    Case(w.ShrinkPerturb(0.9, 0.01)),
    Case(w.Lookahead(0.5)),
    Case(w.Rewind(2)),
    Case(w.ResetDormant(0.5, interval=2)),
    Case(w.GradientStep(0.1)),
    Case(w.Decay(exponential(0.1, 0.01, over="2 epochs"))),
    Case(w.Perturb(0.01)),
    Case(w.Clamp(-0.2, 0.3), holds=lambda x: (x >= -0.2) & (x <= 0.3)),
    Case(w.Clamp(high=0.1), holds=lambda x: x <= 0.1),
    Case(w.NonNegative(), holds=lambda x: x >= 0),
    Case(w.MaxNorm(0.5), holds=lambda x: row_norms(x) <= 0.5 + 1e-6),
    Case(w.UnitNorm(), holds=lambda x: (row_norms(x) - 1).abs() <= 1e-6),
    Case(w.MaxNorm(0.5, momentum="tangent"), holds=lambda x: row_norms(x) <= 0.5 + 1e-6),
    Case(w.MinMaxNorm(0.5, 1.0), holds=lambda x: (row_norms(x) >= 0.5 - 1e-6) & (row_norms(x) <= 1 + 1e-6)),
    Case(w.ZeroMean(), holds=lambda x: x.flatten(1).double().mean(1).abs() <= 1e-6 * (1 + x.abs().amax())),
    Case(w.L1Ball(0.7), holds=lambda x: x.flatten(1).double().abs().sum(1) <= 0.7 + 1e-6),
    Case(w.Simplex(), holds=lambda x: (x.flatten(1).double().sum(1) - 1).abs() <= 1e-5),
    Case(w.Orthonormal(), holds=lambda x: gram_excess(x) <= 1e-5),
    Case(w.SpectralBound(0.6), holds=lambda x: torch.linalg.matrix_norm(x.flatten(1).double(), 2) <= 0.6 + 1e-5),
    Case(w.LowRank(2), holds=lambda x: torch.linalg.svdvals(x.flatten(1).double())[2:] <= 1e-5 * (1 + x.abs().amax())),
    Case(w.Symmetric(), holds=lambda x: x == x.mT, shapes=[(4, 4)], layer=square),
    Case(w.SkewSymmetric(), holds=lambda x: x == -x.mT, shapes=[(4, 4)], layer=square),
    Case(
        w.PositiveDefinite(0.1),
        holds=lambda x: (x == x.mT) & (torch.linalg.eigvalsh(x.double()) >= 0.1 - 1e-5 * (1 + x.abs().amax())),
        shapes=[(4, 4)],
        layer=square,
    ),
    Case(w.LowerTriangular(), holds=lambda x: x == x.tril(), shapes=[(4, 4), (6, 5)]),
    Case(w.TopK(0.4), holds=lambda x: x.count_nonzero() <= -(-4 * x.numel() // 10)),
    Case(w.NofM(1, 2), holds=lambda x: nonzero_of_two(x) <= 1, shapes=[(6, 4), (4, 2, 2, 2)], layer=square),
    Case(w.Grid(4), holds=on_grid),
    Case(w.Intersection(w.NonNegative(), w.MaxNorm(0.5)), holds=lambda x: (x >= 0) & (row_norms(x) <= 0.5 + 1e-5)),
    Case(
        w.Intersection(w.ZeroMean(), w.UnitNorm()),
        holds=lambda x: ((row_norms(x) - 1).abs() <= 1e-5) & (x.double().flatten(1).mean(1).abs().amax() <= 1e-5),
    ),
    Case(
        w.MagnitudePruning(0.6),
        holds=lambda x: x.count_nonzero() <= x.numel() - 6 * x.numel() // 10,
        spans_weights=True,
    ),
    Case(w.MagnitudePruning(cubic(0.0, 0.6, over=6), "layer", where="0.weight"), holds=lambda x: x == x),
    Case(w.MagnitudePruning(0.5, "unit"), holds=lambda x: x.flatten(1).count_nonzero(1) <= -(-x[0].numel() // 2)),
    Case(
        w.MagnitudePruning(0.5, "1:2"),
        holds=lambda x: nonzero_of_two(x) <= 1,
        shapes=[(6, 4), (4, 2, 2, 2)],
        layer=square,
    ),
    Case(w.MovementPruning(0.5), holds=lambda x: x.count_nonzero() <= -(-x.numel() // 2), spans_weights=True),
    Case(w.SNIP(0.5), holds=lambda x: x == x, spans_weights=True),
    Case(w.RigL(0.5, fraction=0.3), holds=lambda x: x.count_nonzero() <= -(-x.numel() // 2)),
    Case(w.KeepZeros(), holds=lambda x: x == x),
    Case(w.EMA(0.9)),
    Case(w.SWA()),
    Case(w.WeightNorm()),
    Case(w.SpectralNorm()),
    Case(w.SpectralNorm(iterations=3)),
    Case(w.LowRankAdapter(2, alpha=4.0)),
    Case(w.FakeQuantize(4)),
    Case(w.FakeQuantize(3, per_unit=False, observer="mse")),
    Case(w.WeightHistograms()),
    Case(w.WeightHistograms(statistics=True)),
    Case(w.DormantUnits()),
    Case(w.PluginEffect()),
    Case(w.PluginEffect("epoch")),
    Case(w.WeightStatistics()),
    Case(w.GradientNorms()),
    Case(w.Sparsity()),
    Case(w.SpectralNorms()),
    Case(w.FilterImages()),
    Case(w.Hyperparameters()),
    Case(w.UpdateHistograms()),
    Case(w.UpdateRatio()),
    Case(w.GradientHistograms()),
    Case(w.LearningRates()),
    Case(w.Losses()),
    Case(w.PenaltyCosts()),
    Case(w.Violations()),
    Case(w.TensorBoard()),
    Case(w.JSONLines()),
    Case(w.Checkpoints("2 epochs", keep=2)),
]


@pytest.mark.parametrize(("check", "case"), conformance(CASES), ids=str)
def test_conformance(check, case):
    check(case)


def test_no_plugin_is_forgotten():
    assert missing(CASES, "weightsmith_plugins") == []


def test_a_forgotten_plugin_is_named():
    kept = [case for case in CASES if not isinstance(case.plugin, w.UnitNorm)]
    assert missing(kept, "weightsmith_plugins") == ["weightsmith_plugins.constraints.norms.UnitNorm"]


def test_holds_can_fail():
    broken = Case(w.MaxNorm(0.5), holds=lambda x: row_norms(x) <= 0.25)
    check = next(check for check, _ in conformance([broken]) if str(check) == "projection_lands_in_the_set")
    with pytest.raises(AssertionError, match="outside the set"):
        check(broken)
    assert torch.get_default_dtype() is torch.float32
