"""Parts of sharded weights, what spans them, and copies that stay alike."""

import pytest
import torch
from parts_and_copies import WINDOWED, adversaries, all_scored, copies, everything, hybrid, searched, windowed
from weightsmith.ranking import largest
from worlds import together

SCORES = [
    (seed, dtype, ties, share)
    for seed in range(3)
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
    for ties in (False, True)
    for share in (0.0, 0.02, 0.3, 0.5, 0.9, 1.0)
]


@pytest.fixture(scope="module")
def found():
    return together(2, everything)


@pytest.mark.parametrize("size", [2, 3])
def test_the_largest_of_all_parts_are_the_largest_of_the_whole(size):
    for ends in zip(*together(size, all_scored, SCORES), strict=True):
        for count, scores, kept in ends:
            assert int(kept.sum()) == count
            assert torch.equal(kept, largest(scores.unsqueeze(0), count)[0])


def test_parts_come_together_again(found):
    for end in found:
        for whole, back in end["parts"]:
            assert all(torch.equal(whole, each) for each in back)


def test_norms_span_the_parts(found):
    for end in found:
        whole, norm, each, flags = end["norms"]
        torch.testing.assert_close(norm, torch.linalg.vector_norm(torch.cat([w.reshape(-1) for w in whole])))
        torch.testing.assert_close(each, torch.stack([torch.linalg.vector_norm(w) for w in whole]))
        assert flags.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "wrapped"])
def test_copies_begin_and_stay_alike(found, kind, accumulate):
    first, second = (
        {name.removeprefix("module."): value for name, value in end["copies"][kind, accumulate].items()}
        for end in found
    )
    assert all(torch.equal(first[name], second[name]) for name in first if "running" not in name)
    plain = found[0]["copies"]["plain", accumulate]
    for name in [name for name in first if "running" not in name]:
        torch.testing.assert_close(first[name], plain[name])


def test_copies_learn_what_one_process_learns(found):
    """Without batch norm, whose statistics are each process's own."""
    for how in ("copies", "shards"):
        for end in found:
            for name, weight in adversaries("copies").items():
                torch.testing.assert_close(end["adversaries"][how][name], weight, rtol=1e-5, atol=1e-6)


def test_a_line_search_goes_the_same_way_on_all_processes(found):
    for end in found:
        for name, weight in searched("copies").items():
            torch.testing.assert_close(end["searched"][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["copies", "shards"])
@pytest.mark.parametrize("name", WINDOWED)
def test_open_windows_outlast_what_is_attached_to_them(found, how, name):
    alone = windowed("copies", *WINDOWED[name])
    for end in found:
        weights = end["windows"][how][name]
        assert weights.keys() == alone.keys()
        assert all(torch.allclose(weights[each], alone[each], rtol=0, atol=1e-12) for each in alone)


def test_weights_that_torch_left_whole_are_looked_at_anew(found):
    for end in found:
        norms, output = end["torch's shards"]
        assert output == 0  # of weights that were edited to 0 while they were whole
        assert all(0.3 < norm < 10 for norm in norms)


def test_a_look_at_the_wrapped_model_synchronises_nothing(found):
    first, second = (end["looked at"] for end in found)
    assert torch.equal(first, second)


def test_an_optimizer_that_joins_all_weights_is_refused_on_shards(found):
    assert all("LBFGS" in end["refusals"] and "copy of the model" in end["refusals"] for end in found)


def test_copies_of_shards_begin_alike_and_are_compared():
    ends = together(4, hybrid)
    assert [before for before, _ in ends] == [[]] * 4
    assert any(after and after[0].startswith("the weight 'weight'") for _, after in ends)


def test_running_statistics_are_the_mean_over_processes(found):
    first, second = (end["copies"]["plain", 1] for end in found)
    assert torch.equal(first["1.running_mean"], second["1.running_mean"])
    assert not torch.equal(first["1.running_mean"], copies("plain", 1)["1.running_mean"])


def test_a_layer_that_one_process_uses_gets_its_share_of_a_gradient_and_an_unused_one_none(found):
    first, second = (end["unused"] for end in found)
    assert first["never.weight"] is None
    assert second["never.weight"] is None
    assert first["once.weight"].abs().sum() > 0
    assert all(torch.equal(first[name], second[name]) for name in first if first[name] is not None)


def test_copies_that_drift_are_found_and_named(found):
    for end in found:
        before, message = end["drifting"]
        assert before == []
        assert message.startswith("the weight '3.weight' is not the same on all processes")


def test_a_checksum_sees_the_place_of_a_value(found):
    for end in found:
        straight, turned = end["sums"]
        assert straight[0] == turned[0]
        assert straight[1] != turned[1]
