"""How runs end before their time: by signals, by exceptions, by another process in the same folder."""

import functools
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from ignite.engine import Events
from torch import nn
from weightsmith import ConfigurationError, RunStopped, Trainer
from weightsmith.checkpoint import find, read_manifest, saved_in
from weightsmith_plugins import Checkpoints, Decay

DATA = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(4)]

PROGRAM = """
import sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weightsmith import Trainer
from weightsmith_plugins import Checkpoints, Noise

torch.manual_seed(0)
model = nn.Linear(3, 2)
data = TensorDataset(torch.randn(40, 3), torch.randn(40, 2))
loader = DataLoader(data, batch_size=2, shuffle=True, num_workers=int(sys.argv[2]))

def step(trainer, batch):
    print("iteration", trainer.state.iteration, flush=True)
    time.sleep(float(sys.argv[3]))
    return trainer.update(nn.functional.mse_loss(model(batch[0]), batch[1]))

trainer = Trainer(model, torch.optim.Adam(model.parameters()), step=step, seed=0, run_dir=sys.argv[1],
                  plugins=[Noise(0.1), Checkpoints("2 epochs")])
if len(sys.argv) > 4:
    trainer.resume(sys.argv[1])
trainer.run(loader, max_epochs=3)
print("weights", model.weight.tolist())
"""


def started(folder, workers=0, pause=0.02, *resume):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), str(workers), str(pause), *resume]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
    )


def wait_for(process, text):
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"{text!r} never came: {process.stderr.read()}")


def weights_of(process):
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output.splitlines()[-1]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_ends_a_run_that_is_saved_and_goes_on(tmp_path, number, workers):
    whole = weights_of(started(tmp_path / "whole", workers, 0))
    process = started(tmp_path / "run", workers)
    try:
        wait_for(process, "iteration 7")
        os.killpg(process.pid, number)  # as Ctrl-C does: the loader's workers as well
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert f"{number.name}: the run is saved after this iteration, and ends" in errors
    assert "Traceback" not in errors
    saved = find(tmp_path / "run")
    assert read_manifest(saved)["iteration"] == int(saved.name) >= 7
    assert weights_of(started(tmp_path / "run", workers, 0, "resume")) == whole


def test_a_second_interrupt_ends_at_once(tmp_path):
    process = started(tmp_path / "run", 0, 30)
    try:
        wait_for(process, "iteration 1")
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert saved_in(tmp_path / "run" / "checkpoints") == []


def trainer_of(plugins=(), **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return Trainer(model, torch.optim.Adam(model.parameters()), nn.MSELoss(), plugins=plugins, seed=3, **options)


def test_without_a_folder_signals_are_left_alone():
    trainer = trainer_of()
    handlers = []
    trainer.add_event_handler(Events.STARTED, lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
    trainer.run(DATA)
    assert handlers == [signal.SIG_DFL]


def test_handlers_of_somebody_else_stay(tmp_path):
    def mine(number, frame):
        raise AssertionError

    before, handlers = signal.signal(signal.SIGTERM, mine), []
    try:
        trainer = trainer_of(run_dir=tmp_path)
        trainer.add_event_handler(Events.STARTED, lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
        trainer.run(DATA)
        assert handlers == [mine]
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_exception_that_ends_a_run_says_where_it_is_saved(tmp_path):
    trainer, told = trainer_of(run_dir=tmp_path), []
    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.add_event_handler(Events.EXCEPTION_RAISED, told.append)
    with pytest.raises(RunStopped) as raised:
        trainer.run(DATA)
    assert raised.value.code == 143
    assert raised.value.path == tmp_path / "checkpoints" / "00000002"
    assert "SIGTERM stopped the run, which is saved in" in str(raised.value)
    assert told == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Breaks:
    """A loader that raises at its third batch."""

    def __len__(self):
        return 4

    def __iter__(self):
        yield from DATA[:2]
        raise OSError("the disk with the pictures is gone")


def test_a_loader_that_raises_leaves_a_crash_beside_the_last_good_checkpoint(tmp_path):
    trainer = trainer_of([Checkpoints(1)], run_dir=tmp_path)
    with pytest.raises(OSError, match="pictures is gone") as raised:
        trainer.run(Breaks())
    assert raised.value.__notes__ == [f"the run as it was then is saved in {tmp_path / 'checkpoints' / 'crash'}"]
    assert find(tmp_path).name == "00000002"
    assert not read_manifest(tmp_path / "checkpoints" / "crash")["is_good"]


def test_a_plugin_that_raises_leaves_a_crash_and_reaches_the_caller_once(tmp_path, caplog):
    class Fails(Decay):
        def edit(self, weight, gradient, site):
            if site.update == 3:
                raise ZeroDivisionError("no")
            return super().edit(weight, gradient, site)

    trainer, told = trainer_of([Fails(0.1)], run_dir=tmp_path), []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: told.append(error))
    with pytest.raises(ZeroDivisionError):
        trainer.run(DATA)
    assert len(told) == 1
    second = trainer_of([Fails(0.1)], run_dir=tmp_path)
    second.resume(tmp_path / "checkpoints" / "crash", allow_changes=True)
    assert "not in order" in caplog.text
    assert second.state.updates == {"optimizer": 3}  # whose optimizer had stepped


def test_what_fails_before_training_leaves_nothing(tmp_path):
    trainer = trainer_of(run_dir=tmp_path)
    trainer.add_event_handler(Events.STARTED, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run(DATA)
    assert not (tmp_path / "checkpoints").exists()


def test_two_processes_do_not_run_in_one_folder_and_a_killed_one_keeps_nothing(tmp_path):
    process = started(tmp_path, 0, 0.5)
    try:
        wait_for(process, "iteration 1")
        with pytest.raises(ConfigurationError, match="another process runs in"):
            trainer_of(run_dir=tmp_path).run(DATA)
    finally:
        process.kill()
        process.communicate()
    trainer_of(run_dir=tmp_path).run(DATA)


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write to the run folder"):
        trainer_of(run_dir=tmp_path / "file" / "run").run(DATA)


def test_a_loader_that_is_shorter_than_it_says_begins_again(caplog):
    class Short:
        def __len__(self):
            return 4

        def __iter__(self):
            return iter(DATA[:3])

    with caplog.at_level(logging.WARNING):
        state = trainer_of().run(Short(), max_epochs=2)
    assert (state.iteration, state.epoch) == (8, 2)
    assert "the data said 4 batches and gave 3" in caplog.text
