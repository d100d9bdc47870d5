"""Starting from a file: what is loaded, adapted, left and refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weightsmith import ConfigurationError, Trainer
from weightsmith_plugins import Pretrained


def network(channels=3, classes=10):
    torch.manual_seed(channels * 100 + classes)
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), *norms, nn.Flatten(), nn.Linear(16, classes))


def batches(channels=3):
    return [(torch.randn(5, channels, 4, 4), torch.zeros(5, dtype=torch.long))]


def started(model, plugin):
    """The model's state at the end of a run that changes nothing but how the weights start."""
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.CrossEntropyLoss(), plugins=[plugin])
    trainer._fire_event("started")
    trainer._start()
    return trainer


@pytest.fixture
def source():
    model = network()
    model(torch.randn(8, 3, 4, 4))
    return model


@pytest.fixture
def file(source, tmp_path):
    path = tmp_path / "source.safetensors"
    save_file(source.state_dict(), path)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_every_weight_and_statistic_is_loaded(source, tmp_path, suffix):
    path = tmp_path / f"source.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(source.state_dict(), path)
    model = network(3, 10)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    trainer = started(model, Pretrained(path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    report = trainer.plugins[0].report(trainer)
    assert len(report.loaded) == len(source.state_dict())
    assert (report.adapted, report.left, report.unused) == ((), (), ())


def test_names_are_renamed_and_a_missing_prefix_is_proposed(source, tmp_path):
    path = tmp_path / "nested.pt"
    torch.save({"model": source.state_dict(), "epoch": 3}, path)
    with pytest.raises(ConfigurationError, match=r"give rename=\[\['\^model") as raised:
        started(network(), Pretrained(path))
    assert "0.weight" in str(raised.value)
    model = network()
    started(model, Pretrained(path, rename=[["^model\\.", ""]]))
    assert torch.equal(model[4].weight, source[4].weight)


def test_other_classes_keep_what_both_have(source, file):
    model = network(classes=7)
    more = network(classes=12)
    start = more[4].weight.detach().clone()
    started(model, Pretrained(file, adapt="overlap"))
    trainer = started(more, Pretrained(file, adapt=[["4.*", "overlap"]]))
    assert torch.equal(model[4].weight, source[4].weight[:7])
    assert torch.equal(more[4].weight[:10], source[4].weight)
    assert torch.equal(more[4].weight[10:], start[10:])
    assert [name for name, _ in trainer.plugins[0].report(trainer).adapted] == ["4.weight", "4.bias"]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_input_channels_keep_the_answer_to_grey_images(source, file, channels):
    model = network(channels)
    started(model, Pretrained(file, adapt="inputs"))
    grey = torch.randn(6, 1, 4, 4)
    wanted = source.eval()(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(model.eval()(grey.expand(-1, channels, -1, -1)), wanted, atol=1e-5)


def test_a_changed_head_may_start_as_it_was(source, file):
    model = network(classes=7)
    start = model[4].weight.detach().clone()
    trainer = started(model, Pretrained(file, adapt="leave"))
    assert torch.equal(model[4].weight, start)
    assert torch.equal(model[0].weight, source[0].weight)
    assert [name for name, _ in trainer.plugins[0].report(trainer).left] == ["4.weight", "4.bias"]


def test_what_is_not_selected_is_left_and_said(source, file):
    model = network()
    statistics = model[1].running_mean.clone()
    trainer = started(model, Pretrained(file, where="4"))
    assert torch.equal(model[4].weight, source[4].weight)
    assert torch.equal(model[1].running_mean, statistics)
    assert "0.weight" in trainer.plugins[0].report(trainer).unused


def test_a_parametrized_weight_starts_through_its_right_inverse(source, file):
    model = network()
    nn.utils.parametrizations.weight_norm(model[4])
    started(model, Pretrained(file))
    assert torch.allclose(model[4].weight, source[4].weight, atol=1e-6)


def test_tied_weights_are_found_by_any_name(tmp_path):
    path = tmp_path / "tied.safetensors"
    save_file({"1.weight": torch.full((3, 3), 0.5)}, path)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    started(model, Pretrained(path))
    assert torch.equal(model[0].weight, torch.full((3, 3), 0.5))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code of the file ran",))


def test_no_file_can_run_code(tmp_path):
    path = tmp_path / "trap.pt"
    path.write_bytes(pickle.dumps({"0.weight": Trap()}, protocol=2))
    with pytest.raises(ConfigurationError, match=r"trap\.pt: refused, for it holds more than tensors"):
        started(network(), Pretrained(path))


@pytest.mark.parametrize("name", ["damaged.safetensors", "damaged.pt"])
def test_a_damaged_file_is_named(source, tmp_path, name):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ConfigurationError, match=r"damaged\.(pt|safetensors): "):
        started(network(), Pretrained(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere.pt"}, r"nowhere\.pt: cannot be read: No such file"),
        ({"adapt": "stretch"}, "adapt takes one of refuse, leave, overlap, inputs"),
        ({"rename": [["(", ""]]}, "is no regular expression"),
        ({"rename": [["^.*$", "x"]]}, "two entries of the file are renamed to 'x'"),
        ({"rename": [["^", "other."]], "strict": False}, "nothing in the file is loaded"),
        ({"rename": [["^4", "head"]]}, r"the file has no '4\.weight'"),
    ],
)
def test_what_cannot_work_is_said_when_it_is_attached(file, settings, message):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigurationError, match=message):
        Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            nn.CrossEntropyLoss(),
            plugins=[Pretrained(**{"path": file, **settings})],
        )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_another_shape_is_refused_with_both_shapes(file):
    with pytest.raises(ConfigurationError, match=r"'4\.weight' is \(10, 16\) in the file, \(7, 16\) here: say how"):
        started(network(classes=7), Pretrained(file))
    with pytest.raises(ConfigurationError, match="adapts the number of input channels, and nothing else"):
        started(network(classes=7), Pretrained(file, adapt="inputs"))


def test_a_file_with_nan_is_refused(source, tmp_path):
    path = tmp_path / "nan.safetensors"
    state = source.state_dict()
    save_file({**state, "0.weight": state["0.weight"] * float("nan")}, path)
    with pytest.raises(ConfigurationError, match=r"'0\.weight' in the file is not finite"):
        started(network(), Pretrained(path))


def test_each_gate_overlaps_with_its_own(tmp_path):
    path = tmp_path / "lstm.safetensors"
    old, new = nn.LSTM(3, 2), nn.LSTM(3, 3)
    save_file(old.state_dict(), path)

    def step(trainer, batch):
        return trainer.update(lambda: new(batch)[0].sum())

    Trainer(new, torch.optim.SGD(new.parameters(), lr=0.0), step=step, plugins=[Pretrained(path, adapt="overlap")]).run(
        [torch.randn(4, 3)]
    )
    for before, after in zip(old.weight_ih_l0.chunk(4), new.weight_ih_l0.chunk(4), strict=True):
        assert torch.equal(before, after[:2])
