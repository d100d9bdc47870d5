"""Small versions of this folder's commands."""

import broken_disk
import damage
import every_plugin
import everywhere
import fuzz
import kills
import pytest
import soak
import weightsmith_plugins as w
from weightsmith.testing.scenes import scene, state_of, stopped_after

QUICK = ["shuffled", "with a generator", "augmented", "shorter than it says", "2 workers that live on", "stateful"]


@pytest.mark.parametrize("name", QUICK)
def test_a_run_goes_on_from_inside_an_epoch_and_from_its_end(name):
    stops, found = everywhere.mismatches(everywhere.LOADERS[name], iterations=[4, 5, 7])
    assert (stops, found) == (3, {})


@pytest.mark.parametrize("name", everywhere.SETTINGS)
def test_a_run_goes_on_whatever_its_settings(name):
    stops, found = everywhere.mismatches(iterations=[2, 7, 10], **everywhere.SETTINGS[name])
    assert stops >= 2
    assert found == {}


@pytest.mark.parametrize("name", everywhere.LENGTHS)
def test_a_run_goes_on_whatever_its_length(name):
    assert everywhere.mismatches(iterations=[4, 6, 11], **everywhere.LENGTHS[name]) == (3, {})


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_goes_on_with_plugins_drawn_at_random(seed):
    assert everywhere.mismatches(iterations=[5, 8], **everywhere.stack(seed)) == (2, {})


def test_what_goes_on_differently_is_found():
    data = iter([everywhere.runs.loader(), everywhere.runs.loader(), everywhere.runs.loader(drop_last=True)])

    def other():
        loader = next(data)
        return loader if not loader.drop_last else everywhere.batches()

    stops, found = everywhere.mismatches(other, iterations=[4])
    assert stops == 1
    assert any("weights" in difference for difference in found[4])


def test_a_new_process_goes_on_with_every_kind_of_plugin(tmp_path):
    chosen = [w.L2(0.1), w.Noise(0.1), w.Perturb(0.01), w.EMA(0.9), w.RigL(0.5), w.PluginEffect("epoch")]
    whole = [case for case in every_plugin.cases() if case.plugin in chosen[:4]]
    assert len(whole) >= 3
    for number, case in enumerate(whole):
        with scene(case) as (trainer, data):
            trainer.run(data, max_epochs=3)
            end = repr(every_plugin.runs.flat(state_of(trainer)))
        with scene(case, run_dir=tmp_path / str(number)) as (first, data):
            stopped_after(4, first, data, epochs=3)
        with scene(case, run_dir=tmp_path / str(number)) as (second, data):
            second.resume(tmp_path / str(number) / "stopped")
            second.run(data, max_epochs=3)
            assert repr(every_plugin.runs.flat(state_of(second))) == end


def test_a_killed_run_ends_as_if_nobody_had_killed_it():
    found = list(kills.killed(2))
    assert [row[1:3] for row in found] == [(True, True)] * 2


@pytest.mark.parametrize("dies", [False, True])
def test_a_save_that_breaks_off_anywhere_leaves_a_checkpoint(dies):
    found = list(broken_disk.failures(dies))
    assert len(found) >= 15
    assert all(found)


def test_a_full_disk_ends_no_training():
    done, iteration = broken_disk.full_disk()
    assert (done.returncode, done.stdout.strip(), iteration) == (0, "finite 6", 5)
    for words in ("00000010 cannot be written", "JSONLines(): nothing more is written", "TensorBoard: nothing more"):
        assert words in done.stderr


def test_damage_is_recognised():
    found = list(damage.recognised(40, seed=1))
    assert len(found) > 30
    assert [what for what, is_seen in found if not is_seen] == []


def test_malformed_files_meet_documented_errors_alone():
    assert fuzz.findings(90) == []


def test_nothing_grows():
    found = soak.soaked(400, epoch=20)
    memory, threads, files = zip(*found[5:], strict=True)
    assert len(set(threads)) == len(set(files)) == 1
    assert memory[-1] < 1.1 * memory[0]
