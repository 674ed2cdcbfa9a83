"""Registries: names are found, kept in order and unique, and a wrong name is answered with the
right one.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from maskloom.segcore.registry import Registry


def filled() -> Registry[str]:
    colours: Registry[str] = Registry("colour")
    for name, code in [("red", "#ff0000"), ("green", "#00ff00"), ("blue", "#0000ff")]:
        assert colours.register(name)(code) == code
    return colours


def test_a_registry_is_a_mapping_in_the_order_of_registration() -> None:
    colours = filled()

    assert isinstance(colours, Mapping)
    assert dict(colours) == {"red": "#ff0000", "green": "#00ff00", "blue": "#0000ff"}
    assert list(colours) == ["red", "green", "blue"]
    assert len(colours) == 3
    assert "green" in colours
    assert "pink" not in colours
    assert colours.get("pink") is None


def test_the_decorator_leaves_its_class_as_it_is() -> None:
    shapes: Registry[type] = Registry("shape")

    @shapes.register("circle")
    class Circle:
        pass

    assert shapes["circle"] is Circle


def test_a_name_is_taken_once() -> None:
    colours = filled()

    with pytest.raises(ValueError, match="the colour 'red' is registered twice"):
        colours.register("red")("#aa0000")

    assert colours["red"] == "#ff0000"


def test_a_name_that_is_nearly_right_is_corrected() -> None:
    with pytest.raises(
        KeyError,
        match=r"There is no colour 'gren'\. Did you mean 'green'\? Known: red, green, blue\.",
    ):
        filled()["gren"]


@pytest.mark.parametrize("name", ["zzz", 7, None])
def test_a_name_that_is_like_no_other_is_answered_with_all(name: object) -> None:
    with pytest.raises(KeyError, match=r"There is no colour .*Known: red, green, blue") as caught:
        filled()[name]  # type: ignore[index]

    assert "Did you mean" not in str(caught.value)


def test_registries_are_apart() -> None:
    filled()

    assert len(Registry[str]("colour")) == 0


def test_a_registry_imports_its_package_when_it_is_first_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file dropped into the folder is known by its decorator alone, and may ask meanwhile."""
    package = tmp_path / "shapes_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from maskloom.segcore.registry import Registry\n"
        "SHAPES = Registry('shape', 'shapes_of_mine')\n"
    )
    (package / "circle.py").write_text(
        "from shapes_of_mine import SHAPES\nSEEN = list(SHAPES)\nSHAPES.register('circle')(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shapes = importlib.import_module("shapes_of_mine").SHAPES
    assert "shapes_of_mine.circle" not in sys.modules
    assert list(shapes) == ["circle"]
    assert sys.modules["shapes_of_mine.circle"].SEEN == []


def test_a_thread_that_asks_while_another_fills_the_registry_sees_all(tmp_path, monkeypatch):
    import threading

    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "slowly_filled"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import threading\n"
        "from maskloom.segcore.registry import Registry\n"
        "STARTED, RELEASED = threading.Event(), threading.Event()\n"
        "THINGS = Registry('thing', __name__)\n"
    )
    (package / "one.py").write_text(
        "from slowly_filled import RELEASED, STARTED, THINGS\n"
        "STARTED.set()\n"
        "RELEASED.wait(60)\n"
        "THINGS.register('one')(1)\n"
    )
    import slowly_filled

    seen: list[list[str]] = []
    first, second = (
        threading.Thread(target=lambda: seen.append(list(slowly_filled.THINGS))) for _ in range(2)
    )
    first.start()
    assert slowly_filled.STARTED.wait(60)
    second.start()
    second.join(0.3)
    slowly_filled.RELEASED.set()
    first.join(60)
    second.join(60)
    assert seen == [["one"], ["one"]]


def test_the_order_does_not_depend_on_what_was_imported_before() -> None:
    program = (
        "import sys, importlib\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "from maskloom.tasks.clusters.protocol import CLUSTERS\n"
        "print(*CLUSTERS)"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", program, *modules], capture_output=True, text=True, check=True
        ).stdout
        for modules in ([], ["maskloom.tasks.clusters.serial"])
    }
    assert orders == {"address kubernetes local serial slurm\n"}
