"""Which weights ``where=`` selects, how it says that it selects none, and how it is written down."""

import importlib

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from weightsmith import SelectionError, Trainer, biases, everything, matrices, named, norms, of_type
from weightsmith.selection import selector
from weightsmith_plugins import L2, MaxNorm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.fc1 = nn.Linear(2, 3)
        self.fc10 = nn.Linear(3, 2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


def is_wide(name, parameter, module):
    return parameter.ndim >= 2 and parameter.shape[1] >= 3


def is_in_blocks(name, parameter, module):
    return name.startswith("blocks.") and isinstance(module, nn.Linear)


ALL = [
    *["conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc1.weight", "fc1.bias", "fc10.weight", "fc10.bias"],
    *["blocks.0.weight", "blocks.1.weight"],
]
MATRICES = ["conv.weight", "fc1.weight", "fc10.weight", "blocks.0.weight", "blocks.1.weight"]
BIASES = ["conv.bias", "norm.bias", "fc1.bias", "fc10.bias"]


def trainer_for(model):
    parameters = model.parameters() if isinstance(model, nn.Module) else [*model["a"].parameters()]
    return Trainer(model, torch.optim.SGD(parameters, lr=0.1), step=lambda trainer, batch: None)


def chosen(where, model=None):
    return list(trainer_for(Net() if model is None else model).weights(where))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("fc1", ["fc1.weight", "fc1.bias"]),
        ("fc1*", ["fc1.weight", "fc1.bias", "fc10.weight", "fc10.bias"]),
        ("fc1.weight", ["fc1.weight"]),
        ("*.bias", BIASES),
        ("blocks", ["blocks.0.weight", "blocks.1.weight"]),
        ("blocks.1", ["blocks.1.weight"]),
        ("blocks.[!0].weight", ["blocks.1.weight"]),
        ("fc?.weight", ["fc1.weight"]),
        ("re:fc[0-9]+.weight", ["fc1.weight", "fc10.weight"]),
        ("re:fc1", ["fc1.weight", "fc1.bias"]),
        (nn.Linear, ["fc1.weight", "fc1.bias", "fc10.weight", "fc10.bias", "blocks.0.weight", "blocks.1.weight"]),
        ("@Conv2d", ["conv.weight", "conv.bias"]),
        ("@torch.nn.BatchNorm2d", ["norm.weight", "norm.bias"]),
        (["fc1", "@Conv2d"], ["conv.weight", "conv.bias", "fc1.weight", "fc1.bias"]),
        (is_wide, ["fc10.weight"]),
        (is_in_blocks, ["blocks.0.weight", "blocks.1.weight"]),
        (everything, ALL),
        ("everything", ALL),
        (matrices, MATRICES),
        (biases, BIASES),
        (norms, ["norm.weight", "norm.bias"]),
        (matrices & ~named("fc*"), ["conv.weight", "blocks.0.weight", "blocks.1.weight"]),
        (norms | "fc1", ["norm.weight", "norm.bias", "fc1.weight", "fc1.bias"]),
        (~matrices & ~biases, ["norm.weight"]),
        (of_type(nn.Conv2d, nn.BatchNorm2d) & biases, ["conv.bias", "norm.bias"]),
        (nn.Conv2d, ["conv.weight", "conv.bias"]),
        (matrices & of_type(nn.Conv2d), ["conv.weight"]),
        (named("fc1", "fc10") & ~biases, ["fc1.weight", "fc10.weight"]),
    ],
)
def test_where_selects_these_weights(where, expected):
    assert chosen(where) == expected


def test_weights_are_the_models_own_parameters():
    model = Net()
    found = trainer_for(model).weights()
    assert {name: id(p) for name, p in found.items()} == {name: id(p) for name, p in model.named_parameters()}


def test_a_type_selects_own_parameters_only():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.inner = nn.Linear(2, 2)

    assert chosen(Holder, Holder()) == ["scale"]


def test_tied_weights_match_under_any_name_and_appear_once():
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
    model["decoder"].weight = model["encoder"].weight
    assert chosen("decoder.weight", model) == ["encoder.weight"]
    assert chosen("*.weight", model) == ["encoder.weight"]
    assert chosen(named("decoder"), model) == ["encoder.weight", "decoder.bias"]


def wrapped_models():
    torch.manual_seed(0)
    whole, inner, parallel = Net(), Net(), Net()
    inner.fc1 = torch.compile(inner.fc1, backend="eager")
    inner.blocks[1] = nn.DataParallel(inner.blocks[1])
    return {
        "compiled": torch.compile(whole, backend="eager"),
        "parallel": nn.DataParallel(parallel),
        "both": torch.compile(nn.DataParallel(Net()), backend="eager"),
        "inside": inner,
    }


def test_wrappers_do_not_show_in_names():
    for kind, model in wrapped_models().items():
        assert chosen("everything", model) == ALL, kind
        assert chosen("fc1", model) == ["fc1.weight", "fc1.bias"], kind


def test_modules_that_only_look_like_wrappers_keep_their_names():
    model = nn.ModuleDict({"module": nn.Linear(2, 2, bias=False), "_orig_mod": nn.Linear(2, 2, bias=False)})
    assert chosen("everything", model) == ["module.weight", "_orig_mod.weight"]


def test_a_users_own_folder_called_parametrizations_keeps_its_name():
    model = nn.Module()
    model.parametrizations = nn.ModuleDict({"first": nn.Linear(2, 2, bias=False)})
    assert chosen("everything", model) == ["parametrizations.first.weight"]


def test_a_parametrized_weight_keeps_its_name_place_and_type():
    model = Net()
    parametrize.register_parametrization(model.fc1, "weight", Doubled())
    assert sorted(chosen("fc1", model)) == ["fc1.bias", "fc1.weight"]
    assert chosen("fc1.weight", model) == ["fc1.weight"]
    assert set(chosen(nn.Linear, model)) == {n for n in ALL if n.startswith(("fc", "blocks"))}
    assert trainer_for(model).weights("fc1.weight")["fc1.weight"] is model.fc1.parametrizations.weight.original


def test_a_weight_of_several_parameters_is_selected_by_its_one_name():
    model = Net()
    weight_norm(model.fc1)
    raw = trainer_for(model).weights("fc1.weight")
    stack = model.fc1.parametrizations.weight
    assert {id(p) for p in raw.values()} == {id(stack.original0), id(stack.original1)}
    trainer = trainer_for(model)
    trainer.attach(L2(0.1, where="fc1.weight"))
    assert trainer.plan().rows[0].weights == ("fc1.weight",)


def test_several_models_prefix_their_names():
    models = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    assert chosen("everything", models) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert chosen("b", models) == ["b.weight", "b.bias"]
    assert chosen("*.weight", models) == ["a.weight", "b.weight"]
    assert chosen(["a.bias", "b.w*"], models) == ["a.bias", "b.weight"]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("fc11.weight", ["'fc11.weight'", "'fc1.weight'"]),
        ("cnov", ["'cnov'", "'conv'"]),
        (["fc1", "bloks.0"], ["'bloks.0'", "'blocks.0'"]),
        ("re:norm.wieght", ["norm.weight"]),
        (nn.LSTM, ["@LSTM"]),
        ("@Conv2", ["@Conv2", "@Conv2d"]),
        ("@weightsmith.Trainer", ["@weightsmith.Trainer"]),
        ("re:(", ["re:("]),
        ([], ["[]"]),
        (3, ["3"]),
        (named("fc1") & named("fc10"), ["fc10"]),
    ],
)
def test_what_matches_nothing_or_is_no_selector_is_refused(where, words):
    with pytest.raises(SelectionError) as caught:
        chosen(where)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_plugin_that_selects_nothing_is_refused_when_attached():
    with pytest.raises(SelectionError, match=r"'fcl'.*'fc1'"):
        trainer_for(Net()).attach(MaxNorm(1.0, where="fcl"))


def test_a_predicate_without_import_path_is_refused():
    with pytest.raises(ValueError, match="top of a module"):
        selector(lambda name, parameter, module: True)


LEAVES = st.sampled_from(
    [everything, matrices, biases, norms, is_wide, is_in_blocks, nn.Linear, nn.Conv2d, Net, "fc1", "re:fc.*", "*.bias"]
).map(selector)
SELECTORS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(lambda part: ~part),
        st.lists(inner, min_size=1, max_size=3).map(selector),
    ),
    max_leaves=5,
)


@given(SELECTORS)
@settings(max_examples=60, deadline=None)
def test_selectors_survive_yaml_and_repr(chosen_by):
    written = yaml.safe_dump(chosen_by.to_plain())
    assert selector(yaml.safe_load(written)) == chosen_by
    assert hash(selector(yaml.safe_load(written))) == hash(chosen_by)
    top = __name__.partition(".")[0]
    names = {top: importlib.import_module(top), "named": named, "selector": selector}
    names |= {"everything": everything, "matrices": matrices, "biases": biases, "norms": norms}
    assert selector(eval(repr(chosen_by), names)) == chosen_by


def test_a_module_called_like_a_family_can_be_selected_by_name_and_written_down():
    model = nn.ModuleDict({"norms": nn.ModuleList([nn.Linear(2, 2, bias=False)]), "last": nn.LayerNorm(2)})
    by_name = named("norms")
    assert chosen(by_name, model) == ["norms.0.weight"]
    assert chosen(yaml.safe_load(yaml.safe_dump(by_name.to_plain())), model) == ["norms.0.weight"]
