"""Everyday mistakes in recipes: each is told once, with its line and its mend."""

import pytest
from weightsmith import RecipeError
from weightsmith.recipe import prepare, read_recipe

RECIPE = """
model: {pieces.Net: {width: 6, activation: ReLU}}
loss: CrossEntropyLoss
optimizer: {SGD: {lr: 1e-1, momentum: 0.9}}
data:
  DataLoader:
    dataset: {pieces.points: {count: 64}}
    batch_size: 16
    shuffle: true
epochs: 1
plugins:
  - MaxNorm: {limit: 0.7, where: 0.weight}
  - L2: 1e-3
"""


def read(pieces, text, changes=()):
    path = pieces / "recipe.yaml"
    path.write_text(text.lstrip("\n"), encoding="utf-8")
    return read_recipe(path, changes)


def problems(pieces, text, changes=(), run_dir=None):
    with pytest.raises(RecipeError) as caught:
        prepare(read(pieces, text, changes), run_dir)
    return [problem.replace(f"{pieces}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "pieces.Net: {width: 6, activation: ReLU}",
            "Dropout: 0.1",
            "1: Dropout: 0.1 are no arguments: write {p: 0.1}",
        ),
        (
            "{pieces.Net: {width: 6, activation: ReLU}}",
            "\n  Linear:\n  in_features: 4\n  out_features: 3",
            "1: {'Linear': None, 'in_features': 4, 'out_features': 3} names nothing: indent in_features, out_features",
        ),
        (
            "L2: 1e-3",
            "MaxNorm:\n    limit: 1.0",
            "12: {'MaxNorm': None, 'limit': 1.0} describes no plugin: indent limit",
        ),
        (
            "L2: 1e-3",
            "L2: {strength: {cosin: {start: 1, end: 0}}}",
            "12: no schedule is called 'cosin': did you mean 'co",
        ),
        ("L2: 1e-3", "L2: {strength: {Clmp: {low: 0}}}", "12: no plugin is called 'Clmp': did you mean 'Clamp'?"),
        (
            "L2: 1e-3",
            "L2: {strength: 1, where: matrixes}",
            "12: L2(strength=1, where='matrixes'): where='matrixes' matches no weight; the nearest are 'matrices'",
        ),
        (
            "L2: 1e-3",
            "WeightHistograms: {statistics: yes}",
            "12: WeightHistograms.statistics: 'yes' is a str, where the field takes bool: write true",
        ),
        ("shuffle: true", "shuffle: yes", "8: DataLoader.shuffle: 'yes' is not of the type bool, null: write true"),
        ("epochs: 1", "epochs: 1.5", "9: epochs: 1.5 is not of the type int (at least 1)"),
        ("epochs: 1", "epoch: 1", "9: a recipe has no 'epoch': did you mean 'epochs'?"),
        ("model:", "modle:", "1: a recipe has no 'modle': did you mean 'model'?"),
        (
            "pieces.Net: {width: 6, activation: ReLU}",
            "Linear: {in_feature: 4, out_features: 3}",
            "1: Linear takes no 'in_feature': did you mean 'in_features'?",
        ),
    ],
)
def test_each_everyday_mistake_is_told_once_with_its_mend(pieces, old, new, message):
    assert old in RECIPE
    (found,) = problems(pieces, RECIPE.replace(old, new))
    assert found.startswith(f"recipe.yaml:{message}")


def test_a_change_of_another_type_is_told_as_in_the_recipe(pieces):
    (found,) = problems(pieces, RECIPE, ["epochs=one"])
    assert found == "--set epochs=one: epochs: 'one' is not of the type int (at least 1)"


def test_a_dataset_in_place_of_batches_is_told_to_be_wrapped(pieces):
    text = RECIPE.partition("data:")[0] + "data: {pieces.points: {count: 64}}\nepochs: 1\n"
    wanted = (
        "recipe.yaml:4: pieces.points gives a dataset, not batches: wrap it, {DataLoader: {dataset: {pieces.points: …}"
    )
    (found,) = problems(pieces, text)
    assert found.startswith(wanted)


NAMED = """
models: {first: pieces.Net, second: pieces.Net}
optimizers:
  first: {SGD: {lr: 0.1}}
  second: {SGD: {lr: 0.1}}
schedulers:
  first: {StepLR: {step_size: 1}}
step: pieces.step
data: {DataLoader: {dataset: pieces.points, batch_size: 16}}
epochs: 1
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("  second:", "  secnd:", 4, "the models ['first', 'second']: did you mean 'second'?"),
        ("  second: {SGD: {lr: 0.1}}\n", "", 1, "the models are named ['first', 'second'], the optimizers ['first']"),
        ("  first: {StepLR", "  frist: {StepLR", 6, "the optimizers ['first', 'second']: did you mean 'first'?"),
    ],
)
def test_a_name_that_the_others_do_not_have_is_told_with_its_line(pieces, old, new, line, message):
    (found,) = problems(pieces, NAMED.replace(old, new))
    assert found.startswith(f"recipe.yaml:{line}: ")
    assert message in found


MEASURED = """
validation: {DataLoader: {dataset: pieces.points, batch_size: 64}}
metrics: {accuracy: Accuracy}
"""


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(MEASURED, "no metric is called 'acuracy': did you mean 'accuracy'?"), ("", "write `metrics:` and `validation:`")],
)
def test_a_metric_that_nothing_measures_is_refused_with_its_line(pieces, tmp_path, metrics, message):
    text = RECIPE + "  - Checkpoints: {best: acuracy}" + metrics
    (problem,) = problems(pieces, text, run_dir=tmp_path / "run")
    assert problem.startswith("recipe.yaml:13: Checkpoints(best='acuracy'): ")
    assert message in problem


def test_a_metric_may_be_a_plugins(pieces, tmp_path):
    with (pieces / "pieces.py").open("a", encoding="utf-8") as file:
        file.write(
            "\n\nfrom ignite.engine import Events\nfrom weightsmith import Plugin\n\n\nclass Counts(Plugin):\n"
            "    def subscriptions(self, trainer):\n"
            "        yield Events.EPOCH_COMPLETED, lambda: trainer.state.metrics.update(count=1.0)\n\n"
            "    def metrics_given(self):\n        return ['count']\n"
        )
    recipe = read(pieces, RECIPE + "  - Checkpoints: {best: count}\n  - pieces.Counts\n")
    prepare(recipe, tmp_path / "run").run()
    assert (tmp_path / "run" / "checkpoints" / "best").exists()
