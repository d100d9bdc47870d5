"""Milliseconds of every constraint, penalty and gradient editor against the loop that people write by hand, as ratios.

The two alternate in one process on the same weights and gradients; what they change is put back before each. The
figures are medians. Four networks: one of two layers, 100 small tensors, the weights of a ResNet-18, and those of
a transformer of 85 million. What decomposes matrices (marked *) meets one block of the larger ones, lest it take hours:
the 100 matrices of the small one, three convolutions of 128 channels, and the four matrices of a transformer's layer.
"""

import argparse
import functools
import importlib.util
import json
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

os.environ.setdefault("KERAS_BACKEND", "torch")
warnings.filterwarnings("ignore", category=DeprecationWarning, module="ignite")

import weightsmith_plugins as w
from measuring import Times, alternate, keep, ratio
from networks import NETWORKS, ONE_BLOCK
from weightsmith import Constraint, GradientEditor, Penalty, Site, Trainer, WeightEvents, linear, ranking
from weightsmith.files import write_tensors
from weightsmith.tensors import unit_norms
from weightsmith_plugins.native.compiling import compiled_function

THRESHOLD = "threshold alone"
IN_PLACE = "added to `.grad`"
ByHand = Callable[[Sequence[nn.Parameter], dict[str, list[Tensor]]], object]


# -------------------------------------------------------------------- the loops that people write


def rows(weight: Tensor) -> tuple[int, ...]:
    return tuple(range(1, weight.ndim))


def lengths(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=rows(tensor) or None, keepdim=True)


def each(edit: Callable[[Tensor], object]) -> ByHand:
    """The loop over weights."""

    def loop(weights: Sequence[nn.Parameter], _: object) -> None:
        with torch.no_grad():
            for weight in weights:
                edit(weight)

    return loop


def each_gradient(edit: Callable[[Tensor, Tensor], object]) -> ByHand:
    """The loop over gradients."""

    def loop(weights: Sequence[nn.Parameter], _: object) -> None:
        with torch.no_grad():
            for weight in weights:
                if weight.grad is not None:
                    edit(weight.grad, weight)

    return loop


def charged(cost: Callable[[Tensor], Tensor]) -> ByHand:
    """A cost written into the loss."""
    return lambda weights, _: sum(cost(weight) for weight in weights).backward()


LIMIT = 0.3
"""Of norms: below those that units have in each of the networks, so that some are outside."""


def max_norm(weight: Tensor) -> None:
    norms = lengths(weight)
    weight.mul_(norms.clamp(max=LIMIT) / (norms + 1e-7))


def min_max_norm(weight: Tensor) -> None:
    norms = lengths(weight)
    weight.mul_(norms.clamp(0.5, 1.0) / (norms + 1e-7))


def threshold(values: Tensor, total: float) -> Tensor:
    ordered, _ = values.sort(dim=1, descending=True)
    thetas = (ordered.cumsum(1) - total) / torch.arange(1, values.shape[1] + 1)
    return thetas.gather(1, (ordered > thetas).sum(1, keepdim=True) - 1)


def l1_ball(weight: Tensor) -> None:
    flat = weight.flatten(1)
    shrunk = flat.sign() * (flat.abs() - threshold(flat.abs(), 1.0)).clamp(min=0)
    outside = flat.abs().sum(1, keepdim=True) > 1.0
    weight.copy_(torch.where(outside, shrunk, flat).view_as(weight))


def simplex(weight: Tensor) -> None:
    flat = weight.flatten(1)
    weight.copy_((flat - threshold(flat, 1.0)).clamp(min=0).view_as(weight))


def by_singular_values(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def edit(weight: Tensor) -> None:
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        weight.copy_((left * change(values) @ right).view_as(weight))

    return edit


def positive_definite(weight: Tensor) -> None:
    if weight.shape[0] == weight.shape[1]:
        values, vectors = torch.linalg.eigh((weight + weight.mT) / 2)
        weight.copy_(vectors * values.clamp(min=1e-6) @ vectors.mT)


def top_k(weight: Tensor) -> None:
    flat = weight.view(-1)
    mask = torch.zeros_like(flat)
    mask[flat.abs().topk(math.ceil(0.2 * flat.numel())).indices] = 1
    flat.mul_(mask)


def two_of_four(weight: Tensor) -> None:
    groups = weight.movedim(1, -1).reshape(-1, 4)
    mask = torch.zeros_like(groups).scatter_(1, groups.abs().topk(2, dim=1).indices, 1)
    weight.copy_((groups * mask).view(weight.movedim(1, -1).shape).movedim(-1, 1))


def grid(weight: Tensor) -> None:
    scale = weight.abs().amax(dim=rows(weight), keepdim=True) / 7
    weight.copy_((weight / scale).round() * scale)


def in_both(weight: Tensor) -> None:
    """Dykstra's algorithm, for as many rounds as people write."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    found = weight.clone()
    for _ in range(10):
        shifted = found + first
        found = shifted.clamp(min=0)
        first = shifted - found
        shifted = found + second
        norms = lengths(shifted)
        found = shifted * (norms.clamp(max=1.0) / (norms + 1e-7))
        second = shifted - found
    weight.copy_(found)


def prune_globally(weights: Sequence[nn.Parameter], _: object) -> None:
    with torch.no_grad():
        sizes = torch.cat([weight.abs().view(-1) for weight in weights])
        limit = sizes.kthvalue(int(0.8 * sizes.numel())).values
        for weight in weights:
            weight.mul_(weight.abs() > limit)


def keep_zeros(weights: Sequence[nn.Parameter], kept: dict[str, list[Tensor]]) -> None:
    if "masks" not in kept:
        kept["masks"] = [(weight != 0).float() for weight in weights]
    with torch.no_grad():
        for weight, mask in zip(weights, kept["masks"], strict=True):
            weight.mul_(mask)


def clip_units(gradient: Tensor, _: Tensor) -> None:
    norms = lengths(gradient)
    gradient.mul_((1.0 / (norms + 1e-6)).clamp(max=1.0))


def clip_adaptively(gradient: Tensor, weight: Tensor) -> None:
    limits = lengths(weight).clamp(min=1e-3) * 0.01
    norms = lengths(gradient)
    clipped = gradient * (limits / norms.clamp(min=1e-6))
    gradient.copy_(torch.where(norms < limits, gradient, clipped))


def clip_adaptively_in_place(gradient: Tensor, weight: Tensor) -> None:
    limits = lengths(weight).clamp_(min=1e-3).mul_(0.01)
    gradient.mul_(limits.div_(lengths(gradient).clamp_(min=1e-6)).clamp_(max=1.0))


def orthogonalize(gradient: Tensor, _: Tensor) -> None:
    turned = gradient.flatten(1)
    tall = turned.shape[0] > turned.shape[1]
    turned = turned.mT if tall else turned
    turned = turned / (turned.norm() + 1e-7)
    for _ in range(5):
        gram = turned @ turned.mT
        turned = 3.4445 * turned + (-4.7750 * gram + 2.0315 * gram @ gram) @ turned
    gradient.copy_((turned.mT if tall else turned).view_as(gradient))


def skip_non_finite(weights: Sequence[nn.Parameter], _: object) -> bool:
    return all(bool(weight.grad.isfinite().all()) for weight in weights if weight.grad is not None)


def freeze(weights: Sequence[nn.Parameter], _: object) -> None:
    for weight in weights:
        weight.grad = None


def spectral(weights: Sequence[nn.Parameter], kept: dict[str, list[Tensor]]) -> None:
    total = 0.0
    for place, weight in enumerate(weights):
        matrix = weight.flatten(1)
        if len(kept.setdefault("right", [])) <= place:
            kept["right"].append(torch.randn(matrix.shape[1]))
        with torch.no_grad():
            left = nn.functional.normalize(matrix @ kept["right"][place], dim=0)
            kept["right"][place] = nn.functional.normalize(matrix.mT @ left, dim=0)
        total = total + 0.01 * (left @ matrix @ kept["right"][place]).square()
    total.backward()


def from_start(cost: Callable[[Tensor, Tensor], Tensor]) -> ByHand:
    def loop(weights: Sequence[nn.Parameter], kept: dict[str, list[Tensor]]) -> None:
        if "start" not in kept:
            kept["start"] = [weight.detach().clone() for weight in weights]
        sum(cost(weight, start) for weight, start in zip(weights, kept["start"], strict=True)).backward()

    return loop


def orthogonality(weight: Tensor) -> Tensor:
    matrix = weight.flatten(1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return 0.01 * (matrix @ matrix.mT - torch.eye(matrix.shape[0])).square().sum()


def group_lasso(weight: Tensor) -> Tensor:
    return 0.01 * math.sqrt(weight[0].numel()) * lengths(weight).sum()


# -------------------------------------------------------------------- what else there is


def one_pass(weights: Sequence[nn.Parameter], _: object) -> None:
    """What no edit in place can do without: every value read, and written."""
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.0)


def through_data(weights: Sequence[nn.Parameter], _: object) -> None:
    """The loop that is older than ``no_grad``, and still seen."""
    for weight in weights:
        weight.data = weight.data.clamp(-0.02, 0.02)


def keras(name: str, *values: float) -> dict[str, ByHand]:
    """A constraint of Keras's, where that is installed."""
    if not importlib.util.find_spec("keras"):
        return {}
    import keras as K

    kind = getattr(K.constraints, name)

    def loop(weights: Sequence[nn.Parameter], _: object) -> None:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(kind(*values, axis=rows(weight) or 0)(weight))

    return {"Keras": loop}


def torch_prune(weights: Sequence[nn.Parameter], _: object) -> None:
    held = [nn.Module() for _ in weights]
    for module, weight in zip(held, weights, strict=True):
        module.weight = weight
    pairs = [(module, "weight") for module in held]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.8)
    for module, weight in zip(held, weights, strict=True):
        with torch.no_grad():
            weight.copy_(module.weight)


def kthvalue(weights: Sequence[nn.Parameter], _: object) -> Tensor:
    sizes = torch.cat([weight.detach().abs().view(-1) for weight in weights])
    return sizes.kthvalue(int(0.8 * sizes.numel())).values


def threshold_alone(weights: Sequence[nn.Parameter], _: object) -> None:
    """What ``kthvalue`` finds, as MagnitudePruning finds it."""
    plain = [weight.detach() for weight in weights]
    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in plain]
    passes = (compiled_function("passes_over", plain) or ranking.in_blocks)(plain, masks)
    ranking._least_kept(passes, passes.total - int(0.8 * passes.total), ranking._steps(passes.total)[0])


class UnitBall(Constraint):
    """A plugin of a user's own, as docs/first_plugin.md writes it."""

    radius: float = LIMIT

    def project(self, weight: Tensor, site: Site) -> Tensor:
        norms = unit_norms(weight, site.unit_dims)
        return weight * (self.radius / norms.clamp(min=self.radius)).to(weight.dtype)


class UnitBallUnitwise(UnitBall):
    """As that page makes it faster for many small weights."""

    unitwise: ClassVar[bool] = True


class UnitBallInPlace(UnitBall):
    """As that page makes it fast."""

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        for weight, site in zip(weights, sites, strict=True):
            norms = unit_norms(weight, site.unit_dims)
            if norms.amax() > self.radius * (1 + 4 * torch.finfo(weight.dtype).eps):
                weight.mul_((self.radius / norms.clamp(min=self.radius)).to(weight.dtype))


@dataclass
class Row:
    """A plugin, the loop that people write, and what else it is compared with."""

    plugin: Constraint | Penalty | GradientEditor
    by_hand: ByHand
    on_one_block: bool = False
    squares_only: bool = False
    others: dict[str, ByHand] = field(default_factory=dict)


GROWING = w.MagnitudePruning(linear(0.7, 0.9, over=38_000))
"""So slowly that it stays near 0.7 while it is timed, and so fast that every update prunes at least one more of
193,600."""


def constraints() -> list[Row]:
    thresholds = {"kthvalue": kthvalue, THRESHOLD: threshold_alone}
    return [
        Row(
            w.Clamp(-0.02, 0.02),
            each(lambda x: x.clamp_(-0.02, 0.02)),
            others={"one pass": one_pass, "`.data`": through_data},
        ),
        Row(w.NonNegative(), each(lambda x: x.clamp_(min=0))),
        Row(
            w.MaxNorm(LIMIT),
            each(max_norm),
            others={"`renorm_`": each(lambda x: x.renorm_(2, 0, LIMIT)), **keras("MaxNorm", LIMIT)},
        ),
        Row(w.MinMaxNorm(0.5, 1.0), each(min_max_norm)),
        Row(w.UnitNorm(), each(lambda x: x.div_(lengths(x) + 1e-7)), others=keras("UnitNorm")),
        Row(w.ZeroMean(), each(lambda x: x.sub_(x.mean(dim=rows(x), keepdim=True)))),
        Row(w.L1Ball(1.0), each(l1_ball)),
        Row(w.Simplex(), each(simplex)),
        Row(w.Orthonormal(), each(by_singular_values(torch.ones_like)), True),
        Row(w.SpectralBound(1.0), each(by_singular_values(lambda s: s.clamp(max=1.0))), True),
        Row(w.LowRank(8), each(by_singular_values(lambda s: s * (torch.arange(len(s)) < 8))), True),
        Row(w.Symmetric(), each(lambda x: x.copy_((x + x.mT) / 2)), squares_only=True),
        Row(w.SkewSymmetric(), each(lambda x: x.copy_((x - x.mT) / 2)), squares_only=True),
        Row(w.PositiveDefinite(), each(positive_definite), True, squares_only=True),
        Row(w.LowerTriangular(), each(lambda x: x.tril_()), squares_only=True),
        Row(w.TopK(0.2), each(top_k)),
        Row(w.NofM(2, 4), each(two_of_four)),
        Row(w.Grid(4), each(grid)),
        Row(w.Intersection(w.NonNegative(), w.MaxNorm(1.0)), each(in_both)),
        Row(GROWING, prune_globally, others={"torch's prune": torch_prune} | thresholds),
        Row(w.MagnitudePruning(0.8), prune_globally),
        Row(w.KeepZeros(), keep_zeros),
        Row(UnitBall(), each(max_norm)),
        Row(UnitBallUnitwise(), each(max_norm)),
        Row(UnitBallInPlace(), each(max_norm)),
    ]


def penalties(fisher: str) -> list[Row]:
    return [
        Row(
            w.L1(0.01),
            charged(lambda x: 0.01 * x.abs().sum()),
            others={IN_PLACE: each_gradient(lambda g, x: g.add_(x.sign(), alpha=0.01))},
        ),
        Row(
            w.L2(0.01),
            charged(lambda x: 0.01 * x.square().sum()),
            others={IN_PLACE: each_gradient(lambda g, x: g.add_(x, alpha=0.02))},
        ),
        Row(w.ElasticNet(0.01, 0.01), charged(lambda x: 0.01 * x.abs().sum() + 0.01 * x.square().sum())),
        Row(
            w.GroupLasso(0.01),
            charged(group_lasso),
            others={
                IN_PLACE: each_gradient(lambda g, x: g.addcdiv_(x, lengths(x), value=0.01 * math.sqrt(x[0].numel())))
            },
        ),
        Row(w.Hoyer(0.01), charged(lambda x: 0.01 * x.abs().sum() / x.square().sum().sqrt())),
        Row(w.NuclearNorm(0.01), charged(lambda x: 0.01 * torch.linalg.matrix_norm(x.flatten(1), "nuc")), True),
        Row(w.Orthogonality(0.01), charged(orthogonality)),
        Row(w.SpectralPenalty(0.01), spectral, True),
        Row(w.L2SP(0.01), from_start(lambda x, start: 0.01 * (x - start).square().sum())),
        Row(w.ElasticConsolidation(0.01, fisher), from_start(lambda x, s: 0.005 * ((x * 0 + 1) * (x - s) ** 2).sum())),
    ]


def gradient_editors() -> list[Row]:
    return [
        Row(w.ClipNorm(1.0), lambda weights, _: nn.utils.clip_grad_norm_(weights, 1.0)),
        Row(w.ClipNorm(1e6), lambda weights, _: nn.utils.clip_grad_norm_(weights, 1e6)),
        Row(w.ClipUnitNorm(1.0), each_gradient(clip_units)),
        Row(w.ClipValue(0.5), lambda weights, _: nn.utils.clip_grad_value_(weights, 0.5)),
        Row(
            w.AdaptiveClip(),
            each_gradient(clip_adaptively),
            others={"in place": each_gradient(clip_adaptively_in_place)},
        ),
        Row(w.Centralize(), each_gradient(lambda g, _: g.ndim > 1 and g.sub_(g.mean(dim=rows(g), keepdim=True)))),
        Row(w.Normalize(), each_gradient(lambda g, _: g.div_(g.norm() + 1e-7))),
        Row(w.Sign(), each_gradient(lambda g, _: g.sign_())),
        Row(w.Orthogonalize(), each_gradient(lambda g, x: g.ndim > 1 and orthogonalize(g, x)), True),
        Row(w.ScaleGradient(0.5), each_gradient(lambda g, _: g.mul_(0.5))),
        Row(w.Noise(0.01), each_gradient(lambda g, _: g.add_(torch.randn_like(g), alpha=0.01))),
        Row(w.Freeze(), freeze),
        Row(w.Unfreeze(["*"], 0.0), freeze),
        Row(w.SkipNonFinite(), skip_non_finite),
    ]


# -------------------------------------------------------------------- measuring


SETTINGS = {
    "tiny, once": ("tiny", 1),
    "small": ("small", 20),
    "small, once": ("small", 1),
    "medium": ("medium", 1),
    "large": ("large", 1),
}
"""What is measured: of which network, and how many calls in a row. Large weights leave nothing of themselves in the
processor's cache, so that it makes no difference to them."""


def measure(row: Row, network: nn.Module, least: float, in_a_row: int) -> Times:
    """The seconds of the plugin, and of the loop by hand."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    trainer = Trainer(network, optimizer, step=lambda t, b: None, plugins=[row.plugin], seed=0)
    trainer._start()
    trainer.state.optimizer, trainer.state.update, trainer.state.evaluation = "optimizer", 1, 1
    event = WeightEvents[row.plugin.at or row.plugin.event.name]
    parameters = list(trainer.weights(row.plugin.where).values())
    everything = list(network.parameters())
    generator = torch.Generator().manual_seed(0)
    kept = [
        (torch.randn(p.shape, generator=generator) * 0.05, torch.randn(p.shape, generator=generator))
        for p in everything
    ]
    for _, gradient in kept:
        gradient *= 0.05
    memory: dict[str, list[Tensor]] = {}

    def put_back_weights() -> None:
        for parameter, (weight, _) in zip(everything, kept, strict=True):
            parameter.copy_(weight)

    def put_back_gradients() -> None:
        for parameter, (_, gradient) in zip(everything, kept, strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.copy_(gradient)

    with torch.no_grad():
        put_back_weights()
        put_back_gradients()
        if isinstance(row.plugin, Constraint):  # as at every update: a step away from the set
            trainer._fire_event(event)
            for parameter, (weight, _) in zip(everything, kept, strict=True):
                weight.copy_(parameter + 0.01 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    put_back = put_back_weights if isinstance(row.plugin, Constraint) else put_back_gradients

    @torch.no_grad()
    def prepare() -> None:
        trainer.state.update += 1
        put_back()

    by_hand = {"by hand": row.by_hand, **row.others}
    contenders = {name: functools.partial(loop, parameters, memory) for name, loop in by_hand.items()}
    return alternate(
        {"plugin": lambda: trainer._fire_event(event), **contenders},
        seconds=least * len(by_hand),
        prepare=prepare,
        in_a_row=in_a_row,
    )


def network_for(row: Row, size: str) -> nn.Module | None:
    torch.manual_seed(0)
    network = (ONE_BLOCK if row.on_one_block else NETWORKS)[size]()
    if row.squares_only:
        squares = [m for m in network.modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features]
        return nn.Sequential(*squares) if squares else None
    if row.plugin == GROWING and size == "tiny":  # which is not one weight more at each update
        return None
    if isinstance(row.plugin, w.NofM) and size == "medium":
        network[0] = nn.Conv2d(4, 64, 7, bias=False)
    return network


IN_ONE_PASS = (
    *(w.Clamp, w.MaxNorm, w.MinMaxNorm, w.UnitNorm),
    *(w.L1, w.ElasticNet, w.GroupLasso),
    *(w.ClipNorm, w.ClipUnitNorm, w.ClipValue, w.AdaptiveClip),
    *(w.L1Ball, w.Simplex, w.NofM),
    *(w.MagnitudePruning, w.KeepZeros, w.TopK),
)
"""What the extra ``fast`` compiles."""


def named(plugin: Any, without_fast: bool) -> str:
    """Its class, and what tells it from another of the same class."""
    name = type(plugin).__name__ + ", under its limit" * (plugin == w.ClipNorm(1e6))
    name += ", at the same share" * (plugin == w.MagnitudePruning(0.8))
    return f"{name}, without the extra fast" if without_fast else name


def added(output: str, threads: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that a file has, with these among them, or in place of those of the same plugin and network."""
    path = Path(output)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "threads": threads}
    if old["threads"] != threads:
        raise SystemExit(f"{output} has figures of {old['threads']} thread(s): give another --output")
    return list({(row["plugin"], row["network"]): row for row in [*old["rows"], *rows]}.values())


def _is_wanted(row: Row, only: list[str] | None, without_fast: bool) -> bool:
    if without_fast and not isinstance(row.plugin, IN_ONE_PASS):
        return False
    return any(part.lower() in named(row.plugin, without_fast).lower() for part in only or [""])


def _refuse_unknown(only: list[str] | None, without_fast: bool) -> None:
    rows = [*constraints(), *penalties("any"), *gradient_editors()]
    if not any(_is_wanted(row, only, without_fast) for row in rows):
        names = sorted({named(row.plugin, False) for row in rows if _is_wanted(row, None, without_fast)})
        raise SystemExit(f"--only {' '.join(only or [])}: no plugin here is called so; there are {', '.join(names)}")


def main(
    sizes: list[str], only: list[str] | None, seconds: float, threads: int, output: str | None, without_fast: bool
) -> None:
    if without_fast:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    torch.set_num_threads(threads)
    _refuse_unknown(only, without_fast)
    found = []
    print(f"{threads} thread(s); medians of alternating calls for {seconds} s each; * one block; × above 1: faster")
    print("once: one call between those of others, as between the steps of a training; small: calls in a row")
    print(f"{'plugin':36s} {'network':11s} {'by hand':>10s} {'plugin':>10s} {'as fast':>9s}")
    with tempfile.TemporaryDirectory() as folder:
        for setting, (size, in_a_row) in SETTINGS.items():
            if size not in sizes:
                continue
            fisher = Path(folder) / f"{size}.safetensors"
            write_tensors(fisher, {name: torch.ones_like(p) for name, p in NETWORKS[size]().named_parameters()})
            for row in [*constraints(), *penalties(str(fisher)), *gradient_editors()]:
                name, network = named(row.plugin, without_fast), network_for(row, size)
                if network is None or not _is_wanted(row, only, without_fast):
                    continue
                times = measure(row, network, seconds, in_a_row)
                took = {who: statistics.median(seconds) for who, seconds in times.items()}
                ratios = {who: ratio(times, "plugin", who) for who in times if who != "plugin"}
                others = "".join(f"   {1 / ratios[who]:.2f} × {who}" for who in row.others if who != THRESHOLD)
                print(
                    f"{name + '*' * row.on_one_block:36s} {setting:11s} {took['by hand'] * 1e3:7.2f} ms "
                    f"{took['plugin'] * 1e3:7.2f} ms {1 / ratios['by hand']:7.2f} ×{others}",
                    flush=True,
                )
                found.append({"plugin": name, "network": setting, "seconds": took, "ratios": ratios})
                if THRESHOLD in times:  # which is compared with another contender than the plugin
                    alone = ratio(times, THRESHOLD, "kthvalue")
                    print(f"{'':60s} the threshold alone: {1 / alone:.2f} × kthvalue", flush=True)
                    found[-1]["ratios"] = {who: r for who, r in ratios.items() if who != THRESHOLD}
                    found.append(
                        {"plugin": f"{name}, its {THRESHOLD}", "network": setting, "ratios": {"by hand": alone}}
                    )
    keep(output, threads=threads, rows=added(output, threads, found) if (only or without_fast) and output else found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="default all")
    parser.add_argument(
        "--only", nargs="+", help="plugins whose name contains one of these; the others of the output's file stay there"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time per plugin and network (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--without-fast", action="store_true", help="only what the extra fast compiles, without it")
    parser.add_argument("--output", help="a file for the same as JSON")
    main(**vars(parser.parse_args()))
