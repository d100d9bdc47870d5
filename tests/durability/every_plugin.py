"""For every built-in plugin: some updates, a checkpoint, and the rest in a new process, against all at a stretch."""

import json
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

from weightsmith.testing.scenes import scene, state_of, stopped_after  # noqa: E402

import runs  # noqa: E402

TABLE = Path(__file__).parents[1] / "plugins"
STOPS = (2, 3, 4)


def cases():
    """The table of the conformance suite."""
    sys.path.insert(0, str(TABLE))
    from test_conformance import CASES

    return CASES


def save_all(folder):
    """Run every plugin at a stretch, and others up to a checkpoint: case to what the run at a stretch ended with."""
    ends = {}
    for number, case in enumerate(cases()):
        with scene(case) as (whole, data):
            whole.run(data, max_epochs=3)
            ends[str(case)] = repr(runs.flat(state_of(whole)))
        for stop in STOPS:
            with scene(case, run_dir=folder / f"{number}-{stop}") as (first, data):
                stopped_after(stop, first, data, epochs=3)
    return ends


def resume_all(folder):
    """In a new process: case to what the runs that go on end with."""
    ends = {}
    for number, case in enumerate(cases()):
        ends[str(case)] = []
        for stop in STOPS:
            run_dir = folder / f"{number}-{stop}"
            with scene(case, run_dir=run_dir) as (second, data):
                second.resume(run_dir / "stopped")
                second.run(data, max_epochs=3)
                ends[str(case)].append(repr(runs.flat(state_of(second))))
    return ends


def main():
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        (folder / "ends.json").write_text(json.dumps(resume_all(folder)))
        return
    logging.disable(logging.ERROR)  # Ignite tells of every run that is stopped
    with tempfile.TemporaryDirectory() as place:
        wanted = save_all(Path(place))
        subprocess.run([sys.executable, "-W", "ignore", __file__, place], check=True)
        found = json.loads((Path(place) / "ends.json").read_text())
    wrong = [case for case, end in wanted.items() if found[case] != [end] * len(STOPS)]
    for case in wrong:
        print(f"{case} ends elsewhere")
    print(f"{len(wanted) - len(wrong)} of {len(wanted)} plugins end bit for bit, resumed in a new process")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
