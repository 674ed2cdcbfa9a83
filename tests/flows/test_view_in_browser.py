"""The page of `maskloom view` in Chromium: what people see and do, by pointer and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import view_support
from view_support import findings, make_scene, segment, served, settled

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]
IMAGES = ("broken", "scene", "volume")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api")
    try:
        with view_support.chromium() as started:
            yield started
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scene with objects, a volume, and a broken image."""
    folder = tmp_path_factory.mktemp("view")
    make_scene(folder / "scene.tif", (1400, 1900))
    z, y, x = np.mgrid[:30, :40, :50]
    ball = (z - 15) ** 2 + (y - 20) ** 2 + (x - 25) ** 2 < 100
    np.save(folder / "volume.npy", np.where(ball, 300, -900).astype(np.int16))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    more = ["--set", "statistics=[area, objects]", "--set", "max_failed_fraction=0.9"]
    with pytest.raises(view_support.subprocess.CalledProcessError) as stopped:
        segment(folder, folder / "out", *more)
    assert stopped.value.returncode == 3
    with served(folder / "out") as (found, _):
        yield found


class Watched:
    """A page, with what it asked for and complained about."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        self.page = self.context.new_page()
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        self.page.on("request", self._asked)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._said)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.hosts.add(request.url.split("/")[2].split(":")[0])

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: Any) -> None:
        self.context.close()
        if error == (None, None, None):
            assert self.complaints == []
            assert self.hosts == {"127.0.0.1"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 800, 420])
def test_axe_finds_nothing_serious(browser: Any, address: str, scheme: str, width: int) -> None:
    with Watched(browser, color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 800})
        for image in IMAGES:
            page.goto("about:blank")
            page.goto(f"{address}#{image}")
            settled(page)
            assert findings(page) == [], image
        page.keyboard.press("?")
        assert findings(page) == [], "help"
        page.keyboard.press("Escape")
        page.evaluate("document.body.append(document.createElement('button'))")
        assert findings(page) != []


def test_everything_is_done_by_keyboard(browser: Any, address: str) -> None:
    def checked(name: str) -> bool:
        return bool(page.is_checked(f"#{name}"))

    with Watched(browser) as page:
        page.goto(f"{address}#scene")
        settled(page)
        for key, name in ((" ", "mask-on"), ("o", "outline"), ("g", "grid-on")):
            before = checked(name)
            page.keyboard.press(key)
            assert checked(name) != before
        page.keyboard.press("[")
        assert page.input_value("#opacity") == "45"
        page.keyboard.press("2")
        assert page.evaluate("[...window.maskloom.state.hidden]") in ([1], [0, 1])
        page.keyboard.press("?")
        assert page.is_visible("#help")
        page.keyboard.press("Escape")
        assert page.is_hidden("#help")
        page.keyboard.press("n")
        settled(page)
        assert page.inner_text("#name") == "volume"
        page.keyboard.press("p")
        settled(page)
        page.keyboard.press("/")
        page.keyboard.type("vol")
        page.wait_for_timeout(500)
        assert page.inner_text("#found") == "1 found"
        # Every control can be reached, and is seen to have the focus.
        page.fill("#search", "")
        page.wait_for_timeout(500)
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
            if page.evaluate("document.activeElement !== document.body"):
                style = "getComputedStyle(document.activeElement).outlineStyle"
                assert page.evaluate(style) != "none"
        controls = page.evaluate(
            """[...document.querySelectorAll("button, input, select, [tabindex='0']")]
            .filter((each) => each.checkVisibility() && !each.disabled && each.id)
            .map((each) => each.id)"""
        )
        assert set(controls) <= reached


def test_an_address_restores_the_place(browser: Any, address: str) -> None:
    for image, place in (("scene", "812.25/301.5/1.3333"), ("volume", "11/7/22/1.5")):
        with Watched(browser) as page:
            page.goto(f"{address}#{image}/{place}")
            settled(page)
            page.wait_for_timeout(600)
            assert page.url == f"{address}#{image}/{place}"
            found = page.evaluate("window.maskloom.state.view.place().map(Number)")
            assert found == pytest.approx([float(each) for each in place.split("/")])


def test_a_click_shows_object_and_outline(browser: Any, address: str) -> None:
    with Watched(browser) as page:
        page.goto(f"{address}#scene")
        settled(page)
        page.mouse.click(680, 480)
        page.wait_for_selector("#clicked .answer")
        said = page.inner_text("#clicked")
        assert "Lon, lat" in said
        page.goto(f"{address}#volume")
        settled(page)
        page.locator(".plane canvas").first.click()
        page.wait_for_selector("#clicked .answer")
        assert "Voxel" in page.inner_text("#clicked")
        assert "Lung" in page.inner_text("#preset")


def test_a_failed_image_says_why_and_the_next_is_one_key_away(browser: Any, address: str) -> None:
    with Watched(browser) as page:
        page.goto(f"{address}#broken")
        settled(page)
        assert "broken.png" in page.inner_text("#failed")
        page.keyboard.press("n")
        settled(page)
        assert page.inner_text("#name") == "scene"


def test_a_scene_of_648_megapixels(browser: Any, tmp_path: Path) -> None:
    """Prints the figures of the benchmark; how fast the machine is, is not tested."""
    from benchmarks.bench_view import measure

    make_scene(tmp_path / "scene.tif", (18_000, 36_000))
    segment(tmp_path / "scene.tif", tmp_path / "out")
    measure(str(tmp_path / "out"), browser)
    with served(tmp_path / "out") as (found, _), Watched(browser) as page:
        page.goto(found)
        settled(page)
        page.evaluate("window.maskloom.images.go(20000, 9000, -1)")
        settled(page)
        assert page.is_visible("#scale")
        assert findings(page) == []
