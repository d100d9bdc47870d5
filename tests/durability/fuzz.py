"""Hands malformed recipes, checkpoints and pretrained files to what reads them: only documented errors come out,
nothing in them is executed, and nothing is written anywhere else."""

import argparse
import hashlib
import io
import json
import logging
import os
import pickle
import random
import shutil
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch  # noqa: E402
import weightsmith_plugins as w  # noqa: E402
import yaml  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import seed as seeded  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import save as safetensors_bytes  # noqa: E402
from weightsmith import WeightsmithError  # noqa: E402
from weightsmith.recipe import from_plain, prepare, read_recipe, read_text, written  # noqa: E402

import runs  # noqa: E402

WORDS = [
    "MaxNorm",
    "L2",
    "Clamp",
    "linear",
    "import",
    "where",
    "limit",
    "os.system",
    "weightsmith.Trainer",
    "every",
    "",
]
CHECKS = list(HealthCheck)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=8
)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def outcome(call):
    """Whether what was called came back, or raised an error that is documented; the error otherwise."""
    try:
        call()
    except WeightsmithError:
        return None
    except BaseException as error:
        return error
    return None


def recipes(count, fail):
    """Recipes as YAML may hold them: of words that mean something, put together at random."""

    @seeded(1)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(WORDS) | SCALARS, NESTED)
    def read(name, body):
        plain = yaml.safe_load(yaml.safe_dump({name: body}))
        error = outcome(lambda: from_plain(plain))
        if error is not None:
            fail(f"recipe {plain!r}: {type(error).__name__}: {error}")

    read()


RECIPE = """\
model: {Sequential: [{Linear: {in_features: 3, out_features: 4}}, Tanh, {Linear: {in_features: 4, out_features: 2}}]}
loss: CrossEntropyLoss
optimizer: {Adam: {lr: 1e-3, betas: [0.9, 0.99]}}
scheduler: {StepLR: {step_size: 3}}
data: {DataLoader: {dataset: {TensorDataset: []}, batch_size: 8}}
validation: {DataLoader: {dataset: {TensorDataset: []}, batch_size: 8}}
metrics: {accuracy: Accuracy, loss: {Loss: {loss_fn: CrossEntropyLoss}}}
epochs: 2
seed: 3
precision: float32
plugins:
  - KaimingNormal
  - L2: {strength: {linear: {start: 1e-3, end: 0, over: 1 epochs}}, where: {all: [matrices, {not: 0.weight}]}}
  - MaxNorm: {limit: 1.0, where: 0.weight, every: 2}
  - EMA: {decay: 0.9, at: EPOCH_COMPLETED}
"""
SIGNS = [
    *"[]{}:,&*!|>-?#'\"%@ \n\t",
    "!!python/object/apply:os.mkdir [executed]",
    "&a *a",
    "- ",
    ": ",
    "1e9999",
    "\x00",
    "é",
]


def recipe_files(count, fail, place):
    """Whole recipes, with a part replaced, or with signs put in and taken out; nothing is trained."""
    chance = random.Random(4)
    file = place / "bad.yaml"
    plain_junk = [junk for junk in JUNK if not torch.is_tensor(junk)] + WORDS
    for number in range(count):
        if number % 2:
            text = written(mutated(read_text(RECIPE, "good.yaml"), chance, plain_junk))
        else:
            text = RECIPE
            for _ in range(chance.randint(1, 6)):
                at = chance.randrange(len(text))
                text = text[:at] + chance.choice(SIGNS) + text[at + chance.choice([0, 0, 1, 5]) :]
        file.write_text(text, encoding="utf-8")
        error = outcome(lambda: prepare(read_recipe(file)))
        if error is not None:
            fail(f"recipe file {number}: {type(error).__name__}: {error}\n{text}")


def mutated(value, chance, junk):
    """The value with one part of it replaced, taken away or added, somewhere inside."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if chance.random() < 0.2 else {**rest, key: mutated(value[key], chance, junk)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], mutated(value[place], chance, junk), *value[place + 1 :]]
    return chance.choice(junk)


JUNK = [
    None,
    -1,
    0,
    2**70,
    1.5,
    float("nan"),
    "text",
    [],
    {},
    [1, [2]],
    {"a": {}},
    True,
    torch.zeros(3),
    torch.zeros(0),
]


def seal(folder, state, manifest):
    """Write a checkpoint whose sums are right, whatever it holds."""
    if state is not None:
        (folder / "state.pt").write_bytes(state)
    for name, facts in manifest["files"].items() if isinstance(manifest.get("files"), dict) else ():
        if isinstance(facts, dict) and (folder / name).is_file():
            data = (folder / name).read_bytes()
            facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    blank = "0" * 64
    text = json.dumps({**manifest, "sha256": blank}, indent=1, default=str)
    place = text.rindex(blank)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(text[:place] + digest + text[place + 64 :])


def checkpoints(count, fail, place):
    chance = random.Random(2)
    trainer = runs.make([w.EMA(0.9), w.Losses(), w.PluginEffect()])
    runs.killed_at(trainer, 3, place / "good", runs.loader(), max_epochs=2)
    good_state = torch.load(place / "good" / "state.pt", weights_only=True)
    good_manifest = json.loads((place / "good" / "manifest.json").read_text())
    good_manifest.pop("sha256")
    for number in range(count):
        folder = place / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / "good", folder)
        manifest, buffer = json.loads(json.dumps(good_manifest)), io.BytesIO()
        what = chance.choice(["state", "state", "state", "manifest", "manifest", "pickle", "weights"])
        if what == "state":
            torch.save(mutated(good_state, chance, JUNK), buffer)
        elif what == "pickle":
            torch.save({**good_state, "position": Evil(place / "executed")}, buffer)
        elif what == "manifest":
            manifest = mutated(manifest, chance, [junk for junk in JUNK if not torch.is_tensor(junk)])
            manifest = manifest if isinstance(manifest, dict) else {}
        else:
            names = ["conv.weight", "head.bias", "other"]
            weights = {name: torch.zeros(chance.choice([(3,), (4, 1, 3, 3), ()])) for name in chance.sample(names, 2)}
            (folder / "weights.safetensors").write_bytes(safetensors_bytes(weights))
        seal(folder, buffer.getvalue() if what in ("state", "pickle") else None, manifest)
        fresh = runs.make([w.EMA(0.9), w.Losses(), w.PluginEffect()])
        before = runs.flat(runs.contents(fresh))
        refused = []

        def resume(fresh=fresh, folder=folder, refused=refused):
            try:
                fresh.resume(folder)
            except WeightsmithError:
                refused.append(True)
                raise

        error = outcome(resume)
        if error is not None:
            fail(f"checkpoint {number} ({what}): {type(error).__name__}: {error}")
        if refused and runs.flat(runs.contents(fresh)) != before:
            fail(f"checkpoint {number} ({what}) was refused, and something of it loaded")


def pretrained(count, fail, place):
    chance = random.Random(3)
    good = safetensors_bytes({"weight": torch.zeros(4, 3)})
    pickled = io.BytesIO()
    torch.save({"weight": torch.zeros(4, 3)}, pickled)
    for number in range(count):
        suffix = chance.choice([".safetensors", ".pt"])
        data = bytearray(good if suffix == ".safetensors" else pickled.getvalue())
        kind = chance.choice(["flip", "cut", "random", "pickle", "header"])
        if kind == "flip":
            for _ in range(chance.randint(1, 20)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        elif kind == "cut":
            del data[chance.randrange(len(data)) :]
        elif kind == "random":
            data = bytearray(chance.randbytes(chance.randint(0, 300)))
        elif kind == "pickle":
            data = bytearray(pickle.dumps({"weight": Evil(place / "executed")}, protocol=chance.randint(0, 5)))
        else:
            entry = {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}
            header = json.dumps(mutated({"weight": entry}, chance, [-1, 2**62, "F64", [], {}])).encode()
            data = bytearray(len(header).to_bytes(8, "little") + header + bytes(48))
        file = place / f"bad{suffix}"
        file.write_bytes(data)

        def load(file=file):
            layer = torch.nn.Linear(3, 4, bias=False)
            runs.Trainer(
                layer, torch.optim.SGD(layer.parameters(), 0.1), torch.nn.MSELoss(), plugins=[w.Pretrained(file)]
            )

        error = outcome(load)
        if error is not None:
            fail(f"pretrained {number} ({kind}{suffix}): {type(error).__name__}: {error}")


def findings(count):
    """What came out that should not."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place, home = Path(folder), Path.cwd()
        inside = place / "cwd"
        inside.mkdir()
        os.chdir(inside)
        try:
            quarter = count // 4
            recipes(count - 3 * quarter, found.append)
            recipe_files(quarter, found.append, place)
            checkpoints(quarter, found.append, place)
            pretrained(quarter, found.append, place)
        finally:
            os.chdir(home)
        if (place / "executed").exists():
            found.append("code in a file was executed")
        left = {path.name for path in place.iterdir()} - {"cwd", "good", "bad", "bad.safetensors", "bad.pt", "bad.yaml"}
        if left or any(inside.iterdir()):
            found.append(f"something was written elsewhere: {left or list(inside.iterdir())}")
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=500)
    count = arguments.parse_args().count
    logging.disable(logging.ERROR)
    found = findings(count)
    for finding in found:
        print(finding)
    print(f"{count} malformed files: {len(found)} undocumented errors, executions or writes elsewhere")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
