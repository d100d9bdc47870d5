"""Ignite's own tests of its engine, with ours in place of it: fetched with the sources of the Ignite that is
installed, and run in a temporary folder. `in_place.py` lists the few that differ, with their reasons. Prints a line for
each engine, and fails where another test fails, or a listed one passes.

What follows `--` is handed to pytest: `ignites_tests.py --engine Trainer -- -k event_handler -x`."""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OPTIONS = ["-q", "--tb=short", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "in_place", "--timeout=120"]
UNFIT = [
    "-W=ignore",  # what Ignite and torch deprecate of each other
    "-m=not distributed and not multinode_distributed and not tpu",  # need other machines
    "--ignore-glob=*/test_deterministic.py",  # all of DeterministicEngine, which is made of Ignite's Engine for good
]


def fetched(folder):
    """The sources of the Ignite that is installed."""
    version = importlib.metadata.version("pytorch-ignite")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    sources = ["--no-binary", "pytorch-ignite", "--no-build-isolation"]
    subprocess.run([*pip, *sources, "--dest", folder, f"pytorch-ignite=={version}"], check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpacked(archive, folder):
    """The folder in which Ignite's `tests` are; its modules stay packed, so that the installed ones count."""
    with tarfile.open(archive) as sources:
        members = [member for member in sources if member.name.split("/")[1:2] == ["tests"]]
        sources.extractall(folder, members, filter="data")
    (root,) = (path.parent for path in folder.glob("*/tests"))
    return root


def passes(engine, root, arguments):
    """Whether the tests pass with an engine in place, but for those that are listed."""
    paths = [HERE, ROOT / "engine", ROOT / "plugins", root]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "ENGINE_IN_PLACE": engine}
    pytest = [sys.executable, "-m", "pytest", *OPTIONS, *UNFIT, f"--rootdir={root}", *arguments]
    return subprocess.run([*pytest, "tests/ignite/engine"], cwd=root, env=environment, check=False).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", action="append", choices=["Trainer", "ResumableLoop", "Engine"])
    parser.add_argument("--sdist", type=Path, help="the sources of Ignite, if they are here")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = unpacked(given.sdist or fetched(folder), folder)
        engines = given.engine or ["Trainer", "ResumableLoop"]
        failed = [engine for engine in engines if not passes(engine, root, given.pytest)]
    if failed:
        raise SystemExit(f"ignite: tests failed with {' and '.join(failed)}")


if __name__ == "__main__":
    main()
