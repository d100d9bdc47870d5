"""What a recipe names: what its parameters take, by their hints, and what is refused of them."""

import sys

import pytest
import torch
from torch import nn
from weightsmith import RecipeError
from weightsmith.recipe import prepare, read_recipe

PARTS = """
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from torch.utils.data import DataLoader, TensorDataset


def points() -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.long)), batch_size=4)


def told() -> Iterator[tuple]:
    yield from points()


def untold() -> Iterable:
    yield from points()


class Reader:
    def __iter__(self) -> Iterator[tuple]:
        yield from points()


class Layer(Protocol):
    width: int


@runtime_checkable
class Named(Protocol):
    name: str


class Seen(nn.Linear):
    def __init__(self, **values: Any) -> None:
        super().__init__(4, 3)
        self.values = values


class Free(Seen):
    def __init__(self, free=None) -> None:
        super().__init__(free=free)


class Anything(Seen):
    def __init__(self, one: Any = None, several: list[Any] = (), thing: object = None) -> None:
        super().__init__(one=one, several=several, thing=thing)


class Protocols(Seen):
    def __init__(self, layer: Layer | None = None, named: Named | None = None) -> None:
        super().__init__(layer=layer, named=named)


class Nested(Seen):
    def __init__(
        self,
        rows: list[list[nn.Module]] = (),
        table: dict[str, nn.Module] | None = None,
        deep: dict[str, list[nn.Module]] | None = None,
        pair: tuple[int, nn.Module] | None = None,
    ) -> None:
        super().__init__(rows=rows, table=table, deep=deep, pair=pair)


class Words(Seen):
    def __init__(self, count: int, *words: str) -> None:
        super().__init__(count=count, words=words)


class Layers(Seen):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers=layers)


def loss(outputs, targets, *weights):
    return nn.functional.cross_entropy(outputs, targets)


def any_loss(*values):
    return nn.functional.cross_entropy(*values)


def focal(outputs, targets, gamma):
    return nn.functional.cross_entropy(outputs, targets) * gamma


def alone(outputs):
    return outputs.sum()


def keyed(outputs, targets, *, gamma):
    return nn.functional.cross_entropy(outputs, targets) * gamma


def step(trainer):
    return None


def twice_and_once(trainer, batch):
    inputs, targets = batch
    for name in ("often", "often", "seldom"):
        model = trainer.models[name]
        trainer.update(lambda: nn.functional.cross_entropy(model(inputs), targets), optimizer=name)


def slow(weights, share: float = 1.0) -> Optimizer:
    return SGD(weights, 0.1 * share)


def halving(optimizer, factor: float = 0.5) -> LRScheduler:
    return StepLR(optimizer, 1, factor)


def nothing() -> Optimizer:
    return SGD([torch.zeros(1)], 0.1)


def no_scheduler() -> LRScheduler:
    return StepLR(nothing(), 1)


class Renamed(SGD):
    def __init__(self, weights, lr: float = 0.1) -> None:
        super().__init__(weights, lr)


class Passing(SGD):
    def __init__(self, lr: float = 0.1, **others) -> None:
        super().__init__(lr=lr, **others)


class Grouped(SGD):
    def __init__(self, weights, *rates: float) -> None:
        super().__init__(weights, max(rates))


class Stepwise(StepLR):
    def __init__(self, of, step_size: int) -> None:
        super().__init__(of, step_size)
"""
RECIPE = """
model: {Linear: [4, 3]}
loss: CrossEntropyLoss
optimizer: {SGD: {lr: 0.1}}
data: parts.points
epochs: 1
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads the recipe with other parts."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "parts.py").write_text(PARTS, encoding="utf-8")
    path = tmp_path / "recipe.yaml"

    def reading(**parts):
        lines = [line for line in RECIPE.strip().splitlines() if line.partition(":")[0] not in parts]
        lines += [f"{key}: {value}" for key, value in parts.items() if value is not None]
        path.write_text("\n".join(lines), encoding="utf-8")
        return read_recipe(path)

    yield reading
    sys.modules.pop("parts", None)


def refused(read, **parts):
    with pytest.raises(RecipeError) as caught:
        prepare(read(**parts))
    (problem,) = caught.value.problems
    return problem.partition("recipe.yaml:")[2]


def seen(read, model):
    return prepare(read(model=model)).trainer.model.values


# -------------------------------------------------------------------- data


@pytest.mark.parametrize("key", ["data", "validation"])
@pytest.mark.parametrize("target", ["told", "untold"])
def test_batches_that_can_be_read_once_are_refused(read, key, target):
    metrics = {"metrics": "{accuracy: Accuracy}"} if key == "validation" else {}
    problem = refused(read, **{key: f"parts.{target}"}, **metrics)
    assert "a generator can be read once: return a DataLoader, or a class with __iter__" in problem
    assert problem[0].isdecimal()


def test_a_class_with_iter_gives_batches_in_every_epoch(read):
    experiment = prepare(read(data="parts.Reader", epochs=3))
    experiment.run()
    assert experiment.trainer.state.updates == {"optimizer": 6}


# -------------------------------------------------------------------- what is called later


@pytest.mark.parametrize("loss", ["{parts.focal: [2.0]}", "{parts.focal: {gamma: 2.0}}", "{parts.keyed: {gamma: 2.0}}"])
def test_a_loss_gets_outputs_and_targets_and_what_the_recipe_says(read, loss):
    made = prepare(read(loss=loss)).trainer.loss_fn
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert made(outputs, targets) == 2 * nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"loss": "parts.focal"}, "focal needs gamma"),
        ({"loss": "parts.keyed"}, "keyed needs gamma"),
        ({"loss": "{parts.focal: {outputs: 1, gamma: 1.0}}"}, "focal takes no 'outputs'"),
        ({"loss": "parts.alone"}, "alone takes outputs, but must take two: the outputs and the targets"),
        ({"loss": None, "step": "parts.step"}, "step takes trainer, but must take two: the trainer and the batch"),
        ({"loss": "{parts.loss: [1.0, 2.0]}"}, "loss is called later, and takes no values by position before"),
        ({"loss": "{parts.any_loss: [1.0, 2.0]}"}, "any_loss is called later, and takes no values by position before"),
    ],
)
def test_what_a_function_would_miss_at_the_first_batch_is_refused(read, parts, message):
    assert message in refused(read, **parts)


def test_a_loss_may_take_any_number_of_values(read):
    prepare(read(loss="parts.any_loss")).run()
    prepare(read(loss="parts.loss")).run()


# -------------------------------------------------------------------- optimizers and schedulers


@pytest.mark.parametrize("optimizer", ["parts.Renamed", "{parts.Passing: {lr: 0.3}}", "{parts.Grouped: [0.1, 0.2]}"])
def test_an_optimizer_gets_the_weights_by_whatever_name(read, optimizer):
    trainer = prepare(read(optimizer=optimizer)).trainer
    assert len(trainer.optimizers["optimizer"].param_groups[0]["params"]) == 2


def test_a_scheduler_gets_the_optimizer_by_whatever_name_and_so_do_those_in_it(read):
    inner = "SequentialLR: {schedulers: [{LinearLR: {total_iters: 2}}, {parts.Stepwise: [1]}], milestones: [1]}"
    for scheduler in ("{parts.Stepwise: [1]}", f"{{{inner.replace('parts.Stepwise', 'StepLR')}}}"):
        prepare(read(scheduler=scheduler)).run()


def rates_at_the_end(read, **parts):
    experiment = prepare(read(**parts))
    experiment.run()
    return {name: each.param_groups[0]["lr"] for name, each in experiment.trainer.optimizers.items()}


def test_a_scheduler_is_stepped_after_each_epoch_or_after_each_update(read):
    parts = {"data": "parts.Reader", "epochs": 3, "scheduler": "{ExponentialLR: {gamma: 0.5}}"}  # two batches an epoch
    assert rates_at_the_end(read, **parts)["optimizer"] == pytest.approx(0.1 * 0.5**3)
    assert rates_at_the_end(read, **parts, scheduler_steps="update")["optimizer"] == pytest.approx(0.1 * 0.5**6)
    parts["accumulate"] = 2
    assert rates_at_the_end(read, **parts, scheduler_steps="update")["optimizer"] == pytest.approx(0.1 * 0.5**3)


def test_each_of_several_schedulers_is_stepped_after_the_updates_of_its_own_optimizer(read):
    one, rate, scheduler = "{Linear: [4, 3]}", "{SGD: {lr: 1.0}}", "{ExponentialLR: {gamma: 0.5}}"
    rates = rates_at_the_end(
        read,
        model=None,
        optimizer=None,
        loss=None,
        models=f"{{often: {one}, seldom: {one}}}",
        optimizers=f"{{often: {rate}, seldom: {rate}}}",
        schedulers=f"{{often: {scheduler}, seldom: {scheduler}}}",
        step="parts.twice_and_once",
        data="parts.Reader",
        scheduler_steps="update",
    )
    assert rates == {"often": 0.5**4, "seldom": 0.5**2}


def test_when_to_step_a_scheduler_that_is_not_there_is_refused(read):
    assert "`scheduler_steps:` says when to step a `scheduler:`" in refused(read, scheduler_steps="update")


FACTORIES = {
    "optimizer": "{parts.slow: {share: 0.5}}",
    "scheduler": "{parts.halving: {factor: 0.25}}",
}


def test_an_optimizer_and_a_scheduler_may_come_of_functions(read):
    rates = rates_at_the_end(read, **FACTORIES, epochs=1)
    assert rates == {"optimizer": 0.05 * 0.25}


def test_a_factory_that_takes_no_weights_is_told_to(read):
    assert "nothing must take the weights as its first parameter" in refused(read, optimizer="parts.nothing")
    assert "no_scheduler must take the optimizer as its first" in refused(read, scheduler="parts.no_scheduler")


# -------------------------------------------------------------------- values by their hints


def test_what_may_be_anything_takes_a_component(read):
    model = "{parts.Anything: {one: {ReLU: {}}, several: [{ReLU: {}}, 1, a], thing: {ReLU: {}}}}"
    found = seen(read, model)
    assert isinstance(found["one"], nn.ReLU)
    assert isinstance(found["several"][0], nn.ReLU)
    assert found["several"][1:] == [1, "a"]
    assert isinstance(found["thing"], nn.ReLU)


def test_protocols_that_cannot_be_checked_take_a_component(read):
    found = seen(read, "{parts.Protocols: {layer: {Linear: [1, 2]}, named: {ReLU: {}}}}")
    assert isinstance(found["layer"], nn.Linear)
    assert isinstance(found["named"], nn.ReLU)


NESTED = {
    "[[{Linear: [4, 3]}, {ReLU: {}}], [{Tanh: {}}]]": lambda v: (
        [[type(m) for m in row] for row in v] == [[nn.Linear, nn.ReLU], [nn.Tanh]]
    ),
    "{a: [{ReLU: {}}, 3], b: {c: {Tanh: {}}}}": lambda v: (
        isinstance(v["a"][0], nn.ReLU) and v["a"][1] == 3 and isinstance(v["b"]["c"], nn.Tanh)
    ),
    "[[1, 2], {a: [3]}]": lambda v: v == [[1, 2], {"a": [3]}],
}


@pytest.mark.parametrize("value", NESTED)
def test_without_a_hint_components_are_made_at_every_depth(read, value):
    assert NESTED[value](seen(read, f"{{parts.Free: {{free: {value}}}}}")["free"])


def test_components_stand_in_nested_lists_mappings_and_pairs(read):
    found = seen(
        read,
        "{parts.Nested: {rows: [[{Linear: [4, 3]}], [{ReLU: {}}, Tanh]], table: {a: {Linear: {in_features: 1, "
        "out_features: 2}}, b: ReLU}, deep: {a: [{ReLU: {}}]}, pair: [1, {ReLU: {}}]}}",
    )
    assert [[type(module) for module in row] for row in found["rows"]] == [[nn.Linear], [nn.ReLU, nn.Tanh]]
    assert {name: type(module) for name, module in found["table"].items()} == {"a": nn.Linear, "b": nn.ReLU}
    assert isinstance(found["deep"]["a"][0], nn.ReLU)
    assert found["pair"][0] == 1
    assert isinstance(found["pair"][1], nn.ReLU)


@pytest.mark.parametrize("arguments", ["{modules: {a: {Linear: [4, 3]}, b: ReLU}}", "[{a: {Linear: [4, 3]}, b: ReLU}]"])
def test_modules_by_name(read, arguments):
    model = prepare(read(model=f"{{ModuleDict: {arguments}}}")).trainer.model
    assert {name: type(module) for name, module in model.items()} == {"a": nn.Linear, "b": nn.ReLU}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{parts.Nested: {rows: [[{Accuracy: {}}]]}}", "Nested.rows: Accuracy makes no Module"),
        ("{parts.Nested: {table: {a: {Accuracy: {}}}}}", "Nested.table: Accuracy makes no Module"),
        ("{parts.Nested: {pair: [{ReLU: {}}, {ReLU: {}}]}}", "Nested.pair: ReLU makes no int"),
        ("{parts.Nested: {pair: [many, {ReLU: {}}]}}", "Nested.pair: 'many' is not of the type int"),
        ("{parts.Words: [1, 2]}", "Words.words: 2 is not of the type str"),
        ("{parts.Words: [many, a]}", "Words.count: 'many' is not of the type int"),
        ("{parts.Layers: [{Accuracy: {}}]}", "Layers.layers: Accuracy makes no Module"),
    ],
)
def test_parts_of_another_type_are_refused_at_every_depth(read, model, message):
    assert message in refused(read, model=model)


def test_any_number_of_texts_stay_texts_and_of_modules_are_made(read):
    found = seen(read, "{parts.Words: [1, ReLU, os.path, '1']}")
    assert found == {"count": 1, "words": ("ReLU", "os.path", "1")}
    layers = seen(read, "{parts.Layers: [ReLU, {Linear: [1, 2]}]}")["layers"]
    assert [type(layer) for layer in layers] == [nn.ReLU, nn.Linear]


def test_a_tensor_is_given_as_a_nested_list(read):
    loss = prepare(read(loss="{CrossEntropyLoss: {weight: [1, 2, 3]}}")).trainer.loss_fn
    assert torch.equal(loss.weight, torch.tensor([1.0, 2.0, 3.0]))
    problem = refused(read, loss="{CrossEntropyLoss: {weight: [1, [2]]}}")
    assert "CrossEntropyLoss.weight: [1, [2]] is no tensor" in problem
