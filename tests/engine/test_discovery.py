"""Plugins that installed distributions announce: found, named, and no harm to each other."""

import importlib
import sys
import textwrap
from importlib import metadata

import pytest
import weightsmith_plugins
from weightsmith import ConfigurationError, importing
from weightsmith.discovery import Registry, plugin_class, registry
from weightsmith.recipe import from_plain

EDITOR = """
from weightsmith import WeightEditor


class {name}(WeightEditor):
    '''w / 2.'''

    def edit(self, weight, gradient, site):
        return weight / 2
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts distributions where Python finds them, as an installer does."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry.cache_clear()
    modules = []

    def put(distribution, module, code, entry_point):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[weightsmith.plugins]\n{entry_point}\n", encoding="utf-8")
        modules.append(module)

    yield put
    registry.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def test_the_built_in_plugins_are_announced_as_others_are():
    classes = {n for n in weightsmith_plugins.__all__ if isinstance(getattr(weightsmith_plugins, n), type)}
    assert classes <= registry().plugins.keys()
    (found,) = registry().plugins["MaxNorm"]
    assert (found.plugin, found.distribution) == (weightsmith_plugins.MaxNorm, "weightsmith")


def test_a_class_and_a_module_can_be_announced(install):
    install("one-class", "announced_one", EDITOR.format(name="HalveOne"), "HalveOne = announced_one:HalveOne")
    install(
        "a-module", "announced_two", EDITOR.format(name="HalveTwo") + "\n__all__ = ['HalveTwo']", "x = announced_two"
    )
    assert plugin_class("HalveOne").__module__ == "announced_one"
    assert plugin_class("HalveTwo").__module__ == "announced_two"
    assert [each.distribution for each in registry().plugins["HalveOne"]] == ["one-class"]
    assert plugin_class("MaxNorm") is weightsmith_plugins.MaxNorm


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("raise RuntimeError('no GPU here')", "RuntimeError: no GPU here"),
        ("def", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("Bumpy = 3", "3 is no plugin class"),
    ],
)
def test_one_that_cannot_be_imported_is_reported_and_leaves_the_others_working(install, code, reason):
    install("broken-plugins", "announced_broken", code, "Bumpy = announced_broken:Bumpy")
    (failure,) = registry().failures
    assert failure.distribution == "broken-plugins"
    assert reason in str(failure)
    assert "Bumpy" in str(failure)
    assert plugin_class("MaxNorm") is weightsmith_plugins.MaxNorm
    with pytest.raises(ConfigurationError, match=r"no plugin is called 'Bumpy'.*broken-plugins"):
        plugin_class("Bumpy")


def test_two_with_one_name_are_an_error_that_names_both(install):
    install("first-one", "announced_first", EDITOR.format(name="Halve"), "Halve = announced_first:Halve")
    install("second-one", "announced_second", EDITOR.format(name="Halve"), "Halve = announced_second:Halve")
    with pytest.raises(ConfigurationError) as caught:
        plugin_class("Halve")
    for part in ("announced_first.Halve of first-one", "announced_second.Halve of second-one", "import path"):
        assert part in str(caught.value)
    assert plugin_class("announced_second.Halve").__module__ == "announced_second"
    assert len(registry().clashes()) == 1
    assert plugin_class("MaxNorm") is weightsmith_plugins.MaxNorm


def test_one_class_announced_twice_is_no_clash(install):
    points = "a = announced_one:HalveOne\nb = announced_one:HalveOne"
    install("one-class", "announced_one", EDITOR.format(name="HalveOne"), points)
    assert plugin_class("HalveOne").__module__ == "announced_one"
    assert registry().clashes() == []


def test_a_module_without_plugins_is_a_failure():
    point = metadata.EntryPoint("empty", "textwrap", "weightsmith.plugins")
    found = Registry.of([point])
    assert "no plugin class in its __all__" in found.failures[0].reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (3, "3 is no name"),
        ("MaxNrm", "did you mean 'MaxNorm'"),
        ("os.path.join", "'os.path.join' is no plugin class"),
        ("nowhere.Plugin", "nothing can be imported as 'nowhere.Plugin'"),
        ("weightsmith_plugins.", "no import path"),
    ],
)
def test_names_that_mean_no_plugin(name, message):
    with pytest.raises(ConfigurationError, match=message):
        plugin_class(name)


def test_the_source_of_what_is_installed_may_be_tried_out(tmp_path, monkeypatch):
    text = "from weightsmith_plugins import L2 as Tried\n"
    for folder in ("installed", "source"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tried_out.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "source"))
    module = importlib.import_module("tried_out")
    monkeypatch.setitem(sys.modules, "tried_out", module)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "installed"), *sys.path])
    with pytest.raises(ConfigurationError, match="another module 'tried_out'"):
        from_plain("tried_out.Tried")
    monkeypatch.setattr(importing, "_INSTALLED", ((tmp_path / "installed").resolve(),))
    with pytest.raises(ConfigurationError, match="needs strength"):
        from_plain("tried_out.Tried")
    assert type(from_plain({"tried_out.Tried": 0.5})) is module.Tried
