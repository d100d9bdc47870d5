"""Recipes: what they may say, what is refused and how, and that what they describe is what is trained."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader
from weightsmith import ConfigurationError, RecipeError, Trainer, linear, matrices, named
from weightsmith.recipe import from_plain, prepare, read_plugins, read_recipe, read_text, written
from weightsmith_plugins import EMA, L1, L2, Clamp, Intersection, MaxNorm, Values, ZeroMean

RECIPE = """
model: {pieces.Net: {width: 6, activation: ReLU}}
loss: CrossEntropyLoss
optimizer: {SGD: {lr: 1e-1, momentum: 0.9}}
data:
  DataLoader:
    dataset: {pieces.points: {count: 64}}
    batch_size: 16
    shuffle: true
epochs: 3
seed: 5
plugins:
  - MaxNorm: {limit: 0.7, where: 0.weight}
  - L2: 1e-3
"""


def write(pieces, text=RECIPE):
    path = pieces / "recipe.yaml"
    path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return path


def problems(pieces, text, changes=()):
    with pytest.raises(RecipeError) as caught:
        prepare(read_recipe(write(pieces, text), changes))
    return [problem.replace(f"{pieces}/", "") for problem in caught.value.problems]


# -------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("no", "no"),
        ("on", "on"),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("~", None),
        ("", None),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)
def test_yaml_is_read_by_its_core_schema(text, value):
    read = read_text(text, "x.yaml")
    assert read == value
    assert type(read) is type(value) or isinstance(value, (dict, list))


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(plain_values)
def test_what_is_written_is_read_back(value):
    try:
        text = written(value)
        text.encode("utf-8")
    except UnicodeEncodeError:
        return  # half of a surrogate pair, which is no text
    assert read_text(text, "x.yaml") == value


def test_texts_that_look_like_numbers_stay_texts():
    value = {"a": "1e-4", "b": "null", "c": "0x10", "d": "yes", "e": ".5", "f": 1e-05}
    assert read_text(written(value), "x.yaml") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3: the key 'a' stands here a second time, first x.yaml:1"),
        ("a:\n  b: !!python/object/apply:os.system [ls]", "x.yaml:2: the tag '!!python/object/apply:os.system' is not"),
        ("a: !custom 1", "x.yaml:1: the tag '!custom' is not taken"),
        ("a: !!binary aGk=", "x.yaml:1: the tag '!!binary' is not taken"),
        ("a: !!int x", "x.yaml:1: 'x' is no int"),
        ("a: [1,\nb: 2", "x.yaml:2: it is no YAML: expected ',' or ']', but got '<stream end>'; a bracket of this"),
        ("a: 1\n b: 2", "x.yaml:2: it is no YAML: mapping values are not allowed here; look at this line and the one"),
        ("a: 1\nb:2\nc: 3", "x.yaml:3: it is no YAML: could not find expected ':'; look at this line and the one bef"),
        (
            "a:\n    b: 1\n  c: 2",
            "x.yaml:3: it is no YAML: expected <block end>, but found '<block mapping start>'; lo",
        ),
        ("a:\n\tb: 1", "x.yaml:2: it is no YAML: found character '\\t' that cannot start any token; indent with blan"),
        ("a: 'open", "x.yaml:1: it is no YAML"),
        ("a: &x [*x]", "x.yaml:1: the alias stands for something that it is a part of"),
        ("? [1]\n: 2", "x.yaml:1: a key must be a text or a number"),
        ("- a\n---\n- b", "x.yaml:2: it is no YAML"),
        ("a: \x07", "x.yaml: it is no YAML"),
        ("[" * 3000, "x.yaml: it is nested too deeply"),
        ("9" * 5000, "x.yaml:1: the number has more than 1000 digits"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text, message):
    with pytest.raises(RecipeError) as caught:
        read_text(text, "x.yaml")
    assert str(caught.value).startswith(message)


def test_a_few_lines_cannot_stand_for_billions_of_values():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    with pytest.raises(RecipeError, match="more than 100000 values"):
        read_text(text, "x.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    with pytest.raises(RecipeError, match=r"x\.yaml: it is no text in UTF-8"):
        read_plugins(tmp_path / "x.yaml")


# -------------------------------------------------------------------- plugins


@pytest.mark.parametrize(
    ("text", "plugin"),
    [
        ("ZeroMean", ZeroMean()),
        ("L2: 1e-4", L2(1e-4)),
        ("L2:", None),
        ("weightsmith_plugins.L2: {strength: 0.1, mode: decoupled}", L2(0.1, mode="decoupled")),
        ("MaxNorm: {limit: {linear: {start: 1, end: 3, over: 4 epochs}}}", MaxNorm(linear(1, 3, over="4 epochs"))),
        (
            "L2: {strength: 0.1, where: {all: [matrices, {not: head}]}, after: 2 epochs}",
            L2(0.1, where=matrices & ~named("head"), after="2 epochs"),
        ),
        (
            "L1: {strength: 0.1, where: ['@Linear', 're:fc.*'], every: 3}",
            L1(0.1, where=[nn.Linear, "re:fc.*"], every=3),
        ),
        ("EMA: {decay: 0.9, at: EPOCH_COMPLETED}", EMA(0.9, at=Events.EPOCH_COMPLETED)),
        ("Intersection: [{Clamp: {low: 0}}, {MaxNorm: 2}]", Intersection(Clamp(low=0), MaxNorm(2))),
        ("Values: [[1, 2], [3, 4]]", Values([[1, 2], [3, 4]])),
        ("{class_path: MaxNorm, init_args: {limit: 3}}", MaxNorm(3)),
        ("class_path: weightsmith_plugins.ZeroMean", ZeroMean()),
        (
            "Intersection: [{class_path: Clamp, init_args: {low: 0}}, {MaxNorm: 2}]",
            Intersection(Clamp(low=0), MaxNorm(2)),
        ),
    ],
)
def test_plugins_are_read_in_every_form(text, plugin):
    plain = read_text(text, "x.yaml")
    if text == "L2:":
        with pytest.raises(ConfigurationError, match="L2 needs strength"):
            from_plain(plain)
    else:
        found = from_plain(plain)
        assert found == plugin
        assert from_plain(read_text(written(found.to_plain()), "y.yaml")) == found


def test_a_list_and_a_recipe_both_give_plugins(pieces):
    assert read_plugins(write(pieces)) == [MaxNorm(0.7, where="0.weight"), L2(1e-3)]
    assert read_plugins(write(pieces, "- L2: 1\n- ZeroMean\n")) == [L2(1.0), ZeroMean()]
    assert read_plugins(write(pieces, "[]")) == []
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: there are no plugins"):
        read_plugins(write(pieces, "model: x"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: plugins are a list"):
        read_plugins(write(pieces, "plugins: {L2: 1}"))


def test_plugins_are_found_beside_the_recipe(pieces):
    (pieces / "pieces.py").write_text(
        "from weightsmith import WeightEditor\n\n\nclass Halve(WeightEditor):\n"
        "    def edit(self, weight, gradient, site):\n        return weight / 2\n",
        encoding="utf-8",
    )
    (found,) = read_plugins(write(pieces, "- pieces.Halve"))
    assert torch.equal(found(torch.ones(2), torch.zeros(2)), torch.full((2,), 0.5))


# -------------------------------------------------------------------- what is refused


def test_every_problem_is_told_with_its_line_and_the_nearest_name(pieces):
    text = """
        modl: pieces.Net
        model: {pieces.Net: {widht: 6}}
        loss: CrossEntropyLos
        optimizer: {SGD: {lr: fast}}
        data:
          DataLoader:
            dataset: pieces.pints
            batch_size: 1.5
        epochs: 0
        precision: float8
        plugins:
          - MaxNrm: {limit: 1}
          - MaxNorm: {limt: 1, evry: 2}
          - Clamp:
              low: 1
              high:
                linear: {start: 1, ende: 2}
    """
    found = problems(pieces, text)
    wanted = [
        "recipe.yaml:1: a recipe has no 'modl': did you mean 'model'?",
        "recipe.yaml:2: Net takes no 'widht': did you mean 'width'?",
        "recipe.yaml:3: nothing in torch or Ignite that fits here is called 'CrossEntropyLos': did you mean 'CrossEn",
        "recipe.yaml:4: SGD.lr: 'fast' is not of the type float",
        "recipe.yaml:7: DataLoader.dataset: ",
        "recipe.yaml:8: DataLoader.batch_size: 1.5 is not of the type int",
        "recipe.yaml:9: epochs: 0 is not of the type int (at least 1)",
        "recipe.yaml:10: precision: 'float8' is not of the type Literal['float32', 'bfloat16', 'float16']",
        "recipe.yaml:12: no plugin is called 'MaxNrm': did you mean 'MaxNorm'?",
        "recipe.yaml:13: MaxNorm has no field 'limt': did you mean 'limit'?",
        "recipe.yaml:13: MaxNorm has no field 'evry': did you mean 'every'?",
        "recipe.yaml:17: linear takes start, end, over and after",
    ]
    for start in wanted:
        assert any(problem.startswith(start) for problem in found), (start, found)
    assert len(found) == len(wanted)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loss: CrossEntropyLoss\n", "", ": the recipe needs `loss:`, or a `step:` of its own"),
        ("epochs: 3\n", "", "the recipe needs epochs"),
        ("seed: 5", "metrics: {accuracy: Accuracy}", "`metrics:` are measured on `validation:`: write both"),
        ("seed: 5", "device: abacus", "device 'abacus' cannot be used here"),
        ("seed: 5", "models: {}", "write `model:` or `models:`, not both"),
        ("pieces.Net: {", "torch.nn.Linear: {in_features: 4, out_features: 3, ", "Linear takes no 'width'"),
        (
            "pieces.Net: {width: 6, activation: ReLU}",
            "pieces.points: {count: 6}",
            "does not say that it returns a Module",
        ),
        ("pieces.Net", "os.system", "'os.system' does not say that it returns a Module"),
        ("pieces.Net: {", "nowhere.Net: {", "nothing can be imported as 'nowhere.Net'"),
        ("pieces.Net: {", "pieces.Nett: {", "did you mean 'Net'?"),
        ("pieces.points: {count: 64}", "pieces.points: {count: many}", "points.count: 'many' is not of the type int"),
        ("width: 6", "width: -6", "Net cannot be made: RuntimeError"),
        ("where: 0.weight", "where: 1.weight", "where='1.weight' matches no weight; the nearest are"),
        ("SGD: {lr: 1e-1", "Linear: {lr: 1e-1", "fits here is called 'Linear'"),
        ("SGD: {lr: 1e-1", "SGD: {params: 1, lr: 1e-1", "SGD takes no 'params'"),
    ],
)
def test_what_cannot_work_is_refused(pieces, old, new, message):
    assert old in RECIPE
    found = problems(pieces, RECIPE.replace(old, new))
    assert any(message in problem for problem in found), found
    assert all(problem.startswith("recipe.yaml:") for problem in found), found


def test_conflicts_are_all_named_at_once(pieces):
    conflicts = RECIPE + (
        "  - Clamp: {low: 0, where: 0.weight}\n  - UnitNorm: {where: 9.weight}\n  - Symmetric: {where: 2.weight}\n"
    )
    found = problems(pieces, conflicts)
    assert len(found) == 3
    assert found[0].startswith("recipe.yaml:14: two constraints claim the weight '0.weight'")
    assert found[1].startswith("recipe.yaml:15: UnitNorm")
    assert found[2].startswith("recipe.yaml:16: Symmetric")


# -------------------------------------------------------------------- what is trained


def by_hand():
    """The recipe, written as a script."""
    from pieces import Net, points

    torch.manual_seed(5)
    data = DataLoader(points(64), batch_size=16, shuffle=True)
    model = Net(6, nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plugins = [MaxNorm(0.7, where="0.weight"), L2(1e-3)]
    trainer = Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=plugins, seed=5)
    trainer.run(data, max_epochs=3)
    return trainer


def test_a_recipe_trains_what_the_same_script_trains(pieces):
    experiment = prepare(read_recipe(write(pieces)))
    experiment.run()
    wanted = by_hand().weights()
    found = experiment.trainer.weights()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert experiment.trainer.state.updates == {"optimizer": 12}


def test_the_resolved_recipe_gives_the_same_weights_also_where_no_seed_was_given(pieces, tmp_path):
    recipe = read_recipe(write(pieces, RECIPE.replace("seed: 5\n", "")))
    first = prepare(recipe)
    first.run()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "recipe.yaml").write_text(recipe.resolved(first.seed), encoding="utf-8")
    second = prepare(read_recipe(elsewhere / "recipe.yaml"))
    second.run()
    assert second.seed == first.seed
    wanted = first.trainer.weights()
    assert all(torch.equal(weight, wanted[name]) for name, weight in second.trainer.weights().items())
    other = prepare(recipe)
    assert other.seed != first.seed


def test_several_models_and_optimizers_with_a_step_of_ones_own(pieces):
    text = """
        models: {first: pieces.Net, second: {pieces.Net: {width: 5}}}
        optimizers: {first: {SGD: {lr: 0.1}}, second: {Adam: {lr: 0.01}}}
        schedulers: {first: {StepLR: {step_size: 1, gamma: 0.5}}}
        step: {pieces.step: {scale: 2.0}}
        data: {DataLoader: {dataset: pieces.points, batch_size: 16}}
        epochs: 2
        plugins: [L2: {strength: 0.1, where: second}]
    """
    experiment = prepare(read_recipe(write(pieces, text)))
    experiment.run()
    trainer = experiment.trainer
    assert trainer.state.updates == {"first": 8, "second": 8}
    assert trainer.optimizers["first"].param_groups[0]["lr"] == 0.025
    assert list(trainer.keep) == ["scheduler_first"]
    (held,) = trainer.optimizers["second"].param_groups
    assert {id(p) for p in held["params"]} == {id(p) for p in trainer.models["second"].parameters()}
    assert problems(pieces, text.replace("step: {pieces.step: {scale: 2.0}}\n        ", "")) == [
        "recipe.yaml:1: several models or optimizers need `step:`, a function (trainer, batch)"
    ]


def test_metrics_are_measured_on_the_validation_data(pieces):
    text = RECIPE + (
        "validation: {DataLoader: {dataset: pieces.points, batch_size: 64}}\n"
        "metrics: {accuracy: Accuracy, loss: {Loss: {loss_fn: CrossEntropyLoss}}}\n"
    )
    experiment = prepare(read_recipe(write(pieces, text)))
    experiment.run()
    inputs, targets = next(iter(DataLoader(sys.modules["pieces"].points(64), batch_size=64)))
    outputs = experiment.trainer.model(inputs)
    found = experiment.trainer.state.metrics
    assert found["accuracy"] == (outputs.argmax(1) == targets).double().mean()
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(outputs, targets).item(), rel=1e-6)


def test_validation_may_have_a_step_of_its_own_and_look_at_an_average(pieces):
    text = (
        RECIPE
        + "  - EMA: 0.5\n"
        + (
            "validation: {DataLoader: {dataset: pieces.points, batch_size: 64}}\n"
            "validation_step: pieces.turned_round\n"
            "averaged: true\n"
            "metrics: {accuracy: Accuracy}\n"
        )
    )
    experiment = prepare(read_recipe(write(pieces, text)))
    experiment.run()
    inputs, targets = next(iter(DataLoader(sys.modules["pieces"].points(64), batch_size=64)))
    with experiment.trainer.averaged():
        expected = (experiment.trainer.model(-inputs).argmax(1) == targets).double().mean()
    assert experiment.trainer.state.metrics["accuracy"] == expected
    refused = problems(pieces, text.replace("  - EMA: 0.5\n", ""))
    assert any("recipe.yaml:1" in problem and "verage" in problem for problem in refused), refused


def test_components_are_given_by_position_and_in_the_long_form(pieces):
    model = """
        model:
          Sequential:
            - Linear: {in_features: 4, out_features: 8}
            - class_path: torch.nn.LeakyReLU
              init_args: {negative_slope: 0.2}
            - Tanh
            - Linear: {in_features: 8, out_features: 3, bias: false}
    """
    text = textwrap.dedent(model) + RECIPE.partition("\n")[2].partition("\n")[2]
    experiment = prepare(read_recipe(write(pieces, text), ["plugins.MaxNorm.where=3.weight"]))
    kinds = [type(module).__name__ for module in experiment.trainer.model]
    assert kinds == ["Linear", "LeakyReLU", "Tanh", "Linear"]
    assert experiment.trainer.model[1].negative_slope == 0.2
    assert experiment.trainer.model[3].bias is None


def test_one_batch_stands_for_all(pieces):
    experiment = prepare(read_recipe(write(pieces), ["one_batch=true"]))
    assert experiment.epoch_length == 4
    first, *others = experiment.batches
    assert all(batch is first for batch in others)


def with_model(model):
    return RECIPE.replace("pieces.Net: {width: 6, activation: ReLU}", model).replace(
        "{limit: 0.7, where: 0.weight}", "9"
    )


@pytest.mark.parametrize(
    "model",
    [
        "pieces.Stacked: {layers: [pieces.Start, Tanh]}",
        "pieces.Stacked: {layers: [{Linear: {in_features: 4, out_features: 3}}, pieces.Start2], named: {}}",
        "pieces.Stacked: {layers: [], named: {first: pieces.Start}}",
        "pieces.Stacked: {layers: [{class_path: pieces.Start}]}",
        "pieces.Stacked: {layers: [{Linear: [4, 3]}, Tanh]}",
        "pieces.perhaps: {width: 3}",
    ],
)
def test_parts_in_lists_and_dicts_are_made_when_all_is_made_and_follow_the_seed(pieces, model):
    recipe = read_recipe(write(pieces, with_model(model.replace(", pieces.Start2", ""))))
    first, second = prepare(recipe).trainer.weights(), prepare(recipe).trainer.weights()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert {w.data_ptr() for w in first.values()}.isdisjoint(w.data_ptr() for w in second.values())


def test_texts_stay_texts_on_their_way_to_a_component(pieces):
    model = "pieces.Texts: {text: 'null', either: '1', free: 'true', table: {Linear: 2}}"
    made = prepare(read_recipe(write(pieces, with_model(model)))).trainer.model
    assert made.seen == ("null", "1", "true", {"Linear": 2})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("pieces.Net: {width: '6'}", "recipe.yaml:1: Net.width: '6' is "),
        ("pieces.Net: {width: {ReLU: {}}}", "recipe.yaml:1: Net.width: ReLU makes no int"),
        ("pieces.Net: {activation: {Accuracy: {}}}", "recipe.yaml:1: Net.activation: Accuracy makes no Module"),
        ("pieces.Net: {activation: {os.system: {command: ls}}}", "recipe.yaml:1: Net.activation: "),
        ("pieces.Texts: {free: {os.system: {command: ls}}}", "system does not say what it returns"),
        ("Linear: [4, 3, true, 1, 2, 3]", "recipe.yaml:1: Linear takes in_features, out_features"),
        ("Linear: [4.5, 3]", "recipe.yaml:1: Linear.in_features: 4.5 is not of the type int"),
        ("class_path: [a]", "recipe.yaml:1: ['a'] is no name of a class or function"),
        ("pieces.Net: {width: null}", "recipe.yaml:1: Net.width: null is no value for it"),
        ("pieces.Stacked: {layers: [{Linear: [4, 3]}, {Accuracy: {}}]}", "Stacked.layers: Accuracy makes no Module"),
    ],
)
def test_parts_of_another_type_are_refused(pieces, model, message):
    found = problems(pieces, with_model(model))
    assert any(message in problem for problem in found), found


def test_arguments_by_position_are_checked_by_their_names(pieces):
    text = with_model("Linear: [4, 3, false]").replace("{pieces.points: {count: 64}}", "{pieces.points: [64]}")
    experiment = prepare(read_recipe(write(pieces, text)))
    assert experiment.trainer.model.bias is None
    assert experiment.epoch_length == 4


def test_a_loss_may_be_a_function_with_some_of_its_arguments(pieces):
    text = RECIPE.replace("CrossEntropyLoss", "{pieces.scaled: {scale: 2.0}}")
    loss = prepare(read_recipe(write(pieces, text))).trainer.loss_fn
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert loss(outputs, targets) == 2 * nn.functional.cross_entropy(outputs, targets)
    assert (
        "takes scale, not 2 values"
        in problems(pieces, RECIPE.replace("CrossEntropyLoss", "{pieces.scaled: [2, 3]}"))[0]
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 5", "scheduler: StepLR", "recipe.yaml:10: StepLR needs step_size"),
        ("seed: 5", "scheduler: ReduceLROnPlateau", "ReduceLROnPlateau needs a metric"),
        ("seed: 5", "device: null", "recipe.yaml:10: device: null is no value for it"),
        ("epochs: 3", "epochs: null", "recipe.yaml:9: epochs: null is no value for it"),
        ("seed: 5", "seed: 5000000000", "recipe.yaml:10: seed 5000000000 is more than NumPy takes"),
        ("seed: 5", "step: pieces.step", "`loss:` is for the default step"),
        (
            "{pieces.points: {count: 64}}\n    batch_size: 16\n    shuffle: true",
            "{TensorDataset: []}",
            "the batches raise IndexError",
        ),
        ("seed: 5", "averaged: true", "`averaged:` say how to validate: write `validation:` too"),
        ("seed: 5", "validation_step: pieces.step", "say how to validate"),
        ("seed: 5", "validation: null\nmetrics: {a: Accuracy}", "write both, or neither"),
        ("L2: 1e-3", "L2: {strength: {function: quits.now}}", "recipe.yaml:13: "),
        ("pieces.Net: {width: 6, activation: ReLU}", "quits.Net", "'quits.Net' cannot be imported: SystemExit"),
    ],
)
def test_what_would_do_nothing_or_end_the_process_is_refused(pieces, old, new, message):
    (pieces / "quits.py").write_text("import sys\n\nsys.exit(0)\n", encoding="utf-8")
    found = problems(pieces, RECIPE.replace(old, new))
    assert any(message in problem for problem in found), found


def test_schedulers_may_stand_in_a_scheduler_and_get_its_optimizer(pieces):
    scheduler = """
        scheduler:
          SequentialLR:
            schedulers:
              - LinearLR: {start_factor: 0.25, total_iters: 2}
              - StepLR: {step_size: 1}
            milestones: [2]
    """
    text = RECIPE.replace("epochs: 3", "epochs: 4") + textwrap.dedent(scheduler)
    experiment = prepare(read_recipe(write(pieces, text)))
    rates = []
    (optimizer,) = experiment.trainer.optimizers.values()
    experiment.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    experiment.run()
    assert rates == pytest.approx([0.025, 0.0625, 0.1, 0.01])


def test_a_module_of_the_same_name_from_elsewhere_is_not_taken_for_it(pieces, tmp_path):
    prepare(read_recipe(write(pieces)))
    other = pieces / "other"
    other.mkdir()
    (other / "pieces.py").write_text((pieces / "pieces.py").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: another module 'pieces' than .*other/pieces\.py"):
        read_recipe(write(other))


@pytest.mark.parametrize(
    "plugin",
    [
        "extra.Halve",
        "L2: {strength: {function: extra.strength}}",
        "L2: {strength: 1, where: {satisfying: extra.small}}",
    ],
)
def test_a_plugin_or_function_of_the_same_name_from_elsewhere_is_not_taken_for_it(pieces, plugin):
    code = (
        "from weightsmith import WeightEditor\n\n\nclass Halve(WeightEditor):\n"
        "    def edit(self, weight, gradient, site):\n        return weight / 2\n\n\n"
        "def strength(progress):\n    return 0.1\n\n\ndef small(name, parameter, module):\n    return True\n"
    )
    other = pieces / "other"
    other.mkdir()
    for folder in (pieces, other):
        (folder / "extra.py").write_text(code, encoding="utf-8")
    assert len(read_plugins(write(pieces, f"- {plugin}"))) == 1
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: .*another module 'extra' than .*other/extra\.py"):
        read_plugins(write(other, f"- {plugin}"))
    sys.modules.pop("extra")


def test_a_schedule_over_a_run_of_unknown_length_is_refused_with_its_line(pieces):
    with (pieces / "pieces.py").open("a", encoding="utf-8") as file:
        file.write(
            "\n\nclass Stream:\n    def __iter__(self):\n"
            "        yield from torch.utils.data.DataLoader(points(64), batch_size=16)\n"
        )
    text = RECIPE.partition("data:")[0] + "data: pieces.Stream\nepochs: 3\nplugins:\n  - L2: 1e-3\n"
    prepare(read_recipe(write(pieces, text + "  - L1: {strength: {linear: {start: 1, end: 0, over: 4}}}\n"))).run()
    found = problems(
        pieces,
        text + "  - L1: {strength: {linear: {start: 1, end: 0}}}\n  - Clamp: {high: {cosine: {start: 1, end: 2}}}",
    )
    assert [problem.partition(" needs the length of the run")[0] for problem in found] == [
        "recipe.yaml:8: linear(1, 0)",
        "recipe.yaml:9: cosine(1, 2)",
    ]


def test_the_plugins_of_a_recipe_are_found_where_its_paths_say(pieces):
    (pieces / "lib").mkdir()
    (pieces / "lib" / "of_mine.py").write_text("from weightsmith_plugins import L2 as Mine\n", encoding="utf-8")
    assert read_plugins(write(pieces, "paths: [lib]\nplugins: [of_mine.Mine: 0.5]\n")) == [L2(0.5)]


def test_paths_that_lead_nowhere_are_refused_but_in_a_runs_folder(pieces):
    text = RECIPE + "paths: [nowhere]\n"
    assert [problem.partition("nowhere")[0] for problem in problems(pieces, text)] == [
        "recipe.yaml:14: paths: there is no folder "
    ]
    with pytest.raises(RecipeError, match=r"recipe\.yaml:14: paths: there is no folder .*nowhere"):
        read_plugins(write(pieces, text))
    (pieces / "checkpoints").mkdir()  # the folder from which it was trained is gone
    assert len(read_recipe(write(pieces, text)).plugins) == 2


# -------------------------------------------------------------------- changes


def _betas(recipe):
    return tuple(recipe.optimizers[""].arguments["betas"])


@pytest.mark.parametrize(
    ("changes", "look", "value"),
    [
        (["epochs=7"], lambda r: r.settings.epochs, 7),
        (["optimizer.lr=1e-2"], lambda r: r.optimizers[""].arguments["lr"], 0.01),
        (["optimizer.SGD.lr=2"], lambda r: r.optimizers[""].arguments["lr"], 2.0),
        (["optimizer.nesterov=true"], lambda r: r.optimizers[""].arguments["nesterov"], True),
        (["optimizer={Adam: {lr: 1}}"], lambda r: r.optimizers[""].target, torch.optim.Adam),
        (["data.dataset.count=8"], lambda r: r.batches.arguments["dataset"].arguments["count"], 8),
        (["plugins.MaxNorm.limit=3"], lambda r: r.plugins[0].plugin.limit, 3),
        (["plugins.0.every=3"], lambda r: r.plugins[0].plugin.every, 3),
        (["plugins.L2={strength: 0.5, every: 2}"], lambda r: r.plugins[1].plugin, L2(0.5, every=2)),
        (
            ["optimizer.momentum=0", "optimizer={Adam: {betas: [0.9, 0.9]}}", "optimizer.betas.0=0.5"],
            _betas,
            (0.5, 0.9),
        ),
        (["plugins.1={weightsmith_plugins.L2: 1}", "plugins.L2=2"], lambda r: r.plugins[1].plugin, L2(2.0)),
        (["plugins.L2=0.5"], lambda r: r.plugins[1].plugin, L2(0.5)),
        (["plugins.L2.after=3"], lambda r: r.plugins[1].plugin, L2(1e-3, after=3)),
        (["plugins.L2.strength=1"], lambda r: r.plugins[1].plugin, L2(1.0)),
        (["plugins.1=ZeroMean"], lambda r: r.plugins[1].plugin, ZeroMean()),
        (["plugins=[]", "accumulate=2"], lambda r: (list(r.plugins), r.settings.accumulate), ([], 2)),
        (
            ["optimizer={class_path: torch.optim.SGD, init_args: {momentum: 0.9}}", "optimizer.lr=0.3"],
            lambda r: r.optimizers[""].arguments,
            {"momentum": 0.9, "lr": 0.3},
        ),
        (["optimizer={class_path: SGD}", "optimizer.lr=0.3"], lambda r: r.optimizers[""].arguments, {"lr": 0.3}),
        (
            ["plugins=[{class_path: L2, init_args: {strength: 1}}]", "plugins.L2=2"],
            lambda r: r.plugins[0].plugin,
            L2(2),
        ),
        (
            ["plugins=[{class_path: L2, init_args: {strength: 1}}]", "plugins.L2.every=2"],
            lambda r: r.plugins[0].plugin,
            L2(1, every=2),
        ),
        (["loss.label_smoothing=0.1"], lambda r: r.loss.arguments["label_smoothing"], 0.1),
    ],
)
def test_changes_reach_every_part(pieces, changes, look, value):
    assert look(read_recipe(write(pieces), changes)) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs", "--set epochs: write path=value"),
        ("optimzer.lr=1", "--set optimzer.lr=1: there is no 'optimzer': did you mean 'optimizer'?"),
        ("optimizer.lrr=1", "--set optimizer.lrr=1: SGD takes no 'lrr': did you mean 'lr'?"),
        ("plugins.MaxNrm.limit=1", "did you mean 'MaxNorm'?"),
        ("plugins.9=L2", "there is no '9'"),
        ("epochs.x=1", "'epochs' is 3, which has no parts"),
        ("epochs=[", "--set epochs=[:1: it is no YAML"),
        ("epochs=0", "--set epochs=0: epochs: 0 is not of the type int (at least 1)"),
        (["plugins=[{L2: 1, where: x}]", "plugins.L2=0.3"], "{'L2': 1, 'where': 'x'} names nothing"),
        (["optimizer=Adam", "optimizer.SGD.lr=1"], "--set optimizer.SGD.lr=1: there is no 'SGD'; there are Adam"),
    ],
)
def test_changes_that_lead_nowhere_are_refused(pieces, change, message):
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(pieces), [change] if isinstance(change, str) else change)
    assert message in str(caught.value)


def test_the_recipe_of_the_digits_is_the_script(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    scripts = Path(__file__).parents[2] / "scripts"
    recipe = read_recipe(scripts / "digits.yaml")
    script = sys.modules["train_digits"]
    wanted = [*script.shaping(l2=1e-4, max_norm=1.5, head_bound=0.3), *script.WATCHING]
    assert [placed.plugin for placed in recipe.plugins] == wanted
