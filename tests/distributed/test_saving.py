"""Runs of several processes: saved together, gone on with by as many, by more, and by fewer."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from every_resume import differing
from safetensors.torch import load_file
from saving import (
    SAVED_AT,
    WAYS,
    go_on,
    gone_on_with_on_four,
    run_and_save,
    saved_on_one,
    saved_on_two,
    spoil,
    taken_of,
    trainer_of,
    whole_weights,
)
from weightsmith import ConfigurationError, DamagedCheckpointError
from weightsmith.checkpoint import find, read, read_manifest, saved_in
from weightsmith.cli.comparing import compare
from worlds import together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def on_one(folder):
    """The weights of the undisturbed run of one process, which saves itself as well: what all others must come to."""
    return whole_weights(run_and_save("one", folder / "one"))


@pytest.fixture(scope="module")
def on_two(folder, on_one):
    return together(2, saved_on_two, folder)


def assert_close(weights, expected):
    assert weights.keys() == expected.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", WAYS)
def test_as_many_processes_go_on_bit_for_bit(on_two, how):
    for end in on_two:
        assert end[how]["differing"] == []
        assert {"torch", "python", "numpy", "mean 0.weight", "buffer 1.running_mean"} <= end[how]["keys"]
    assert not torch.equal(on_two[0][how]["torch"], on_two[1][how]["torch"])  # each draws from streams of its own


@pytest.mark.parametrize("how", WAYS)
def test_more_and_fewer_processes_go_on_to_the_same_weights(on_two, on_one, folder, how):
    assert_close(on_two[0][how]["weights"], on_one)
    assert_close(whole_weights(go_on("one", folder / how)), on_one)
    for end in on_two:
        assert_close(end[how]["as the other way"], on_one)


def test_two_go_on_from_one(folder, on_one):
    for end in together(2, saved_on_one, folder):
        for how in WAYS:
            assert_close(end[how], on_one)


def test_four_go_on_from_two_and_draw_from_streams_of_their_own(on_two, folder, on_one):
    ends = together(4, gone_on_with_on_four, folder)
    for how in WAYS:
        assert_close(ends[0][how], on_one)
        draws = [end[f"{how} draws"] for end in ends]
        assert not any(torch.equal(draws[i], draws[j]) for i in range(4) for j in range(i))
        first = torch.load(folder / how / "rank-00000.pt", weights_only=True)
        assert torch.equal(draws[0], first["position"]["random"]["torch"])


def test_every_plugin_goes_on_bit_for_bit_where_weights_are_sharded(tmp_path):
    for tried, found in together(2, differing, tmp_path, ("shards",)):
        assert tried > 100
        assert found == {}


# -------------------------------------------------------------------- on the disk


@pytest.mark.parametrize("how", WAYS)
def test_one_process_reads_compares_and_exports_what_two_saved(on_two, folder, how, tmp_path, capsys):
    contents = read(folder / how)
    assert contents.manifest["processes"] == 2
    assert contents.processes == 2
    assert [str(p) for p in sorted(contents.weights)] == ["0.bias", "0.weight", "2.bias", "2.weight"]
    exported = load_file(folder / f"{how}.safetensors")
    assert all(torch.equal(exported[name], on_two[0][how]["weights"][name]) for name in exported)
    means = load_file(folder / f"{how}-means.safetensors")
    assert means.keys() == exported.keys()
    assert all(torch.equal(means[name], on_two[0][how]["means"][name]) for name in means)
    assert not torch.equal(means["0.weight"], exported["0.weight"])

    trainer = trainer_of("one")
    trainer.resume(folder / how)
    trainer.export(tmp_path / "here.safetensors")
    assert all(torch.equal(load_file(tmp_path / "here.safetensors")[name], contents.weights[name]) for name in exported)
    assert compare(folder / how, folder / how) == 0
    assert "weights: the same" in capsys.readouterr().out


def test_sharded_weights_are_saved_once_and_in_parts(on_two, folder):
    saved = [load_file(path) for path in sorted((folder / "shards").glob("tensors-*.safetensors"))]
    rows = [held["weights/0.weight" + ("" if number == 0 else " @ 4,0")].shape for number, held in enumerate(saved)]
    assert rows == [(4, 4), (3, 4)]
    assert {path.suffix for path in (folder / "shards").iterdir()} == {".safetensors", ".json", ".pt"}
    index = json.loads((folder / "copies" / "index.json").read_text())
    assert [len(entry["parts"]) for entry in index.values()] == [1] * len(index)
    for path in (folder / "copies").glob("rank-*.pt"):
        own = torch.load(path, weights_only=True)
        assert {name for name in own["weights"] if isinstance(own["weights"][name], torch.Tensor)} == set()
        assert all(isinstance(gradient, torch.Tensor) for gradient in own["gradients"].values())  # not averaged yet


@pytest.mark.parametrize("name", ["tensors-00001.safetensors", "rank-00001.pt", "index.json", "manifest.json"])
def test_damage_is_found_in_every_file(on_two, folder, tmp_path, name):
    run = tmp_path / "checkpoints"
    shutil.copytree(folder / "shards", run / f"{SAVED_AT:08d}")
    assert find(tmp_path) == run / f"{SAVED_AT:08d}" == saved_in(run)[0]
    damaged = run / f"{SAVED_AT:08d}" / name
    spoil(damaged)
    with pytest.raises(DamagedCheckpointError, match=name):
        read(run / f"{SAVED_AT:08d}")
    damaged.unlink()
    with pytest.raises(DamagedCheckpointError, match="missing"):
        read(run / f"{SAVED_AT:08d}")


def test_processes_share_the_reading_of_sums_and_agree_on_what_is_damaged(on_two, folder, tmp_path):
    older, newer = tmp_path / "checkpoints" / "00000007", tmp_path / "checkpoints" / "00000008"
    for place in (older, newer):
        shutil.copytree(folder / "copies", place)
    renumber(newer)
    ends = together(2, taken_of, tmp_path, newer)
    files = sorted(read_manifest(newer)["files"])
    assert [end[None][0] for end in ends] == [newer.name] * 2
    assert sorted(ends[0][None][1] + ends[1][None][1]) == files  # each once
    assert all(end[None][1] for end in ends)
    for name in files:  # whichever process finds it
        assert [end[name][0] for end in ends] == [older.name] * 2


def renumber(checkpoint):
    """As if the run had been saved an iteration later."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    reseal(checkpoint, {**manifest, "iteration": int(checkpoint.name), "saves": manifest["saves"] + 1})


def test_what_would_run_code_is_refused(on_two, folder, tmp_path):
    shutil.copytree(folder / "shards", tmp_path / "evil")
    torch.save({"weights": Path}, tmp_path / "evil" / "rank-00000.pt")
    manifest = json.loads((tmp_path / "evil" / "manifest.json").read_text())
    reseal(tmp_path / "evil", manifest)
    with pytest.raises(ConfigurationError, match="could run code"):
        read(tmp_path / "evil")


def reseal(folder, manifest):
    """As somebody would who means harm: with all sums right."""
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps({**manifest, "sha256": "0" * 64}, indent=1)
    (folder / "manifest.json").write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1))
    assert read_manifest(folder)["processes"] == 2
