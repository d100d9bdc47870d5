"""What plugins send on several processes, beyond what torch sends alone."""

import pytest
import torch
from sent import WIDTHS, beyond, with_and_without_engine
from worlds import together

LOCAL = ["L1", "L2", "L2SP", "MaxNorm", "Clamp", "Noise", "Perturb", "EMA", "Grid", "GroupLasso", "Lookahead"]
FLAG = 8
JOINT = ["ClipNorm", "MagnitudePruning", "SpectralPenalty", "Orthonormal"]


@pytest.fixture(scope="module", params=["copies", "shards"])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return request.param, together(2, with_and_without_engine, folder, request.param, [*LOCAL, *JOINT])[0]


def test_the_engine_sends_what_torch_alone_sends(found):
    """But for the flag by which signals stop all processes together, in a run with a folder."""
    _, (engine, torch_alone) = found
    for width, (messages, size) in torch_alone.items():
        sent = engine[f"|{width}"]["update"]
        assert (sent["messages"], sent["bytes"]) == (messages + 1, size + FLAG)


def test_local_plugins_send_nothing(found):
    _, (engine, _) = found
    sent = {(case, width): of["update"] for case, width, of in beyond(engine) if case.partition("(")[0] in LOCAL}
    assert len(sent) >= 2 * len(LOCAL)
    assert set(map(tuple, (of.values() for of in sent.values()))) == {(0.0, 0.0)}


def test_joint_plugins_send_a_few_numbers_and_others_the_weights(found):
    how, (engine, _) = found
    sent = {(case, width): of["update"]["bytes"] for case, width, of in beyond(engine)}
    if how == "copies":
        assert not any(sent.values())
        return
    for width in map(str, WIDTHS):
        assert sent["ClipNorm(max_norm=0.5)", width] == torch.float64.itemsize
        assert sent["MagnitudePruning(sparsity=0.6)", width] == 4 * 256 * 8 + 2 * 2 * 8
        assert sent["SpectralPenalty(strength=0.1)", width] == 4 * (3 * int(width) + 2)
        assert sent["Orthonormal()", width] == 4 * 2 * 2 * int(width) ** 2
