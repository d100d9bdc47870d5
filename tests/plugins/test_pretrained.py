"""Starting from a file: what is loaded, adapted, left and refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weightsmith import ConfigurationError, Trainer, plain_state_dict
from weightsmith.files import read_tensors
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


def test_a_running_statistic_that_the_file_lacks_is_said(source, tmp_path):
    path = tmp_path / "old.safetensors"
    save_file({name: t for name, t in source.state_dict().items() if "num_batches" not in name}, path)
    trainer = Trainer(model := network(), torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    report = Pretrained(path).report(trainer)
    assert [name for name, _ in report.left] == ["1.num_batches_tracked", "2.num_batches_tracked"]


class WithScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"deep": nn.ModuleDict({"norm": nn.BatchNorm1d(3, affine=False)})})
        self.head = nn.Linear(3, 2)

    def forward(self, inputs):
        return self.head(self.inner["deep"]["norm"](inputs))


def test_every_buffer_is_loaded_with_every_weight(tmp_path):
    source = WithScale()
    source(torch.randn(9, 3) + 4)
    path = tmp_path / "source.safetensors"
    save_file(source.state_dict(), path)
    model = WithScale()
    started(model, Pretrained(path))
    assert torch.equal(model.inner["deep"]["norm"].running_mean, source.inner["deep"]["norm"].running_mean)


def test_a_tied_models_own_state_dict_has_nothing_unused(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    path = tmp_path / "tied.pt"
    torch.save(tied().state_dict(), path)
    model = tied()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    assert Pretrained(path).report(trainer).unused == ()


def test_a_parametrized_models_state_dict_is_refused_with_the_way_out(tmp_path):
    source = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    path = tmp_path / "parametrized.safetensors"
    save_file(source.state_dict(), path)
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigurationError, match=r"no '0\.weight', but what a parametrization computes it from.*plain"):
        started(model, Pretrained(path))
    save_file(plain_state_dict(source), path)
    started(model, Pretrained(path))
    torch.testing.assert_close(model[0].weight, source[0].weight)


def test_what_a_parametrization_cannot_give_is_said(tmp_path, caplog):
    source = nn.Linear(4, 4)
    path = tmp_path / "plain.safetensors"
    save_file(source.state_dict(), path)
    model = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    started(model, Pretrained(path))
    assert "adapted: weight (its parametrization cannot give the value in the file" in caplog.text


def test_embeddings_have_no_input_channels(tmp_path):
    path = tmp_path / "embedding.safetensors"
    save_file({"weight": torch.randn(5, 4)}, path)
    with pytest.raises(ConfigurationError, match="an embedding has no input channels"):
        started(nn.Embedding(5, 6), Pretrained(path, adapt="inputs"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"<html><body>404</body></html>", "no file that torch.save wrote: it begins with b'<html>"),
        (b"\x80\x02}q\x00(X\x01\x00", "no whole file of tensors"),
        (b"\x80\x02" + b"\x00" * 40, "weights.pt"),
        (b"PK\x03\x04 and then nothing", "no whole file of tensors"),
    ],
)
def test_files_that_are_none_are_named_for_what_they_are(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        read_tensors(path)


def test_lists_are_read_and_two_tensors_of_one_name_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"models": [{"weight": torch.ones(2)}, {"weight": torch.zeros(2)}]}, path)
    assert list(read_tensors(path)) == ["models.0.weight", "models.1.weight"]
    torch.save({"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)}, path)
    with pytest.raises(ConfigurationError, match=r"two tensors that are both called 'a\.b'"):
        read_tensors(path)


def test_an_adaptation_that_matches_no_weight_is_refused_and_an_idle_renaming_is_told(file, caplog):
    with pytest.raises(ConfigurationError, match=r"'head\.\*' in adapt matches no weight"):
        started(network(), Pretrained(file, adapt=[["head.*", "leave"]]))
    started(network(), Pretrained(file, rename=[["^module\\.", ""]]))
    assert "in rename matches no name in the file" in caplog.text
