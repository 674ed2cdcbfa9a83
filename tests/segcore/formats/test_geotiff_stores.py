"""TIFFs in stores: what is fetched, whose fault a failure is, threads, memory, and silence."""

from __future__ import annotations

import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
import rasterio
import tifffile
from fsspec.implementations.memory import MemoryFileSystem

import maskloom.segcore.formats.tiff.dataset as gdal
from maskloom.segcore.errors import Unavailable
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIFF = FORMATS["tiff"]


def plain(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    return folder / "a.tif"


class CountingStore(MemoryFileSystem):
    """Memory that counts what is read from it, and fails on demand."""

    protocol = "counting"
    store: dict[str, Any] = {}  # noqa: RUF012  as the parent has it
    fetched = 0
    broken = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counting://", "memory://")))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        content = super().cat_file(path, start=start, end=end, **kwargs)
        if type(self).broken and (start or 0) > 100_000:
            raise RuntimeError("the line is down")
        type(self).fetched += len(content)
        return content


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[str]:
    fsspec.register_implementation("counting", CountingStore, clobber=True)
    noise = np.random.default_rng(0).integers(0, 255, (1536, 1536, 3), np.uint8)
    path = tmp_path / "big.tif"
    tifffile.imwrite(path, noise, tile=(256, 256), photometric="rgb", compression="zlib")
    fsspec.filesystem("counting").pipe_file("/big.tif", path.read_bytes())
    CountingStore.broken, CountingStore.fetched = False, 0
    yield "counting://big.tif"
    CountingStore.store.clear()


def test_a_remote_window_fetches_its_own_blocks_only(counting: str) -> None:
    size = fsspec.filesystem("counting").size("/big.tif")
    spec = TIFF.describe(counting, "")
    assert CountingStore.fetched < size / 8
    CountingStore.fetched = 0
    with TIFF.open(spec) as reader:
        reader.read(Box((256, 256), (512, 512)))
    # The header, and one block of 36.
    assert CountingStore.fetched < size / 6


def test_a_failing_store_is_no_fault_of_the_image(counting: str) -> None:
    spec = TIFF.describe(counting, "")
    with TIFF.open(spec) as reader:
        CountingStore.broken = True
        with pytest.raises(Unavailable, match="the line is down") as caught:
            reader.read(Box((1000, 1000), (1300, 1300)))
    assert not caught.value.permanent
    with pytest.raises(Unavailable, match="absent"):
        TIFF.describe("counting://absent.tif", "")


@pytest.mark.parametrize("remote", [True, False])
def test_a_reader_may_move_between_threads(tmp_path: Path, counting: str, remote: bool) -> None:
    location = counting if remote else str(tmp_path / "big.tif")
    reader = TIFF.open(TIFF.describe(location, ""))
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(reader.read(Box((0, 0), (300, 300)))[0].mean())
            reader.__exit__(None, None, None)
        except LookupError as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with rasterio.open(tmp_path / "big.tif") as file:
        assert results == [file.read(window=((0, 300), (0, 300))).mean()]


def test_many_readers_of_one_folder_at_once(counting: str) -> None:
    spec = TIFF.describe(counting, "")
    with TIFF.open(spec) as first, TIFF.open(spec) as second:
        box = Box((0, 0), (64, 64))
        np.testing.assert_array_equal(first.read(box)[0], second.read(box)[0])


def test_decoded_blocks_take_bounded_memory(tmp_path: Path) -> None:
    from rasterio._env import get_gdal_config

    dataset = gdal.TiffDataset.open(StoredFile.of(str(plain(tmp_path))))
    assert dataset.run(get_gdal_config, "GDAL_CACHEMAX") == gdal.CACHE_BYTES >= 2**20
    dataset.close()


def test_warnings_and_log_lines_of_gdal_do_not_reach_the_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tif"
    # A broken ASCII tag makes libtiff warn, and a missing georeference rasterio.
    tifffile.imwrite(
        path,
        np.zeros((8, 8, 3), np.uint8),
        photometric="rgb",
        extratags=[(34735, "H", 3, (1, 2, 3), True)],
    )
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        with TIFF.open(TIFF.describe(str(path), "")) as reader:
            reader.read(Box((0, 0), (8, 8)))
    assert not [
        record
        for record in caplog.records
        if record.name.startswith("rasterio") and record.levelno >= logging.INFO
    ]
    assert capfd.readouterr() == ("", "")


def test_a_server_that_ignores_ranges_gives_the_same_pixels(counting, monkeypatch):
    spec = TIFF.describe(counting, "1")
    box = Box((500, 300), (900, 1100))
    with TIFF.open(spec) as reader:
        expected = reader.read(box)[0]

    def whole(self, path: str, start: object = None, end: object = None, **_: object) -> bytes:
        return MemoryFileSystem.cat_file(self, path)

    # As the web server of Python does. A longer answer would overrun the memory of GDAL.
    monkeypatch.setattr(CountingStore, "cat_file", whole)
    with TIFF.open(TIFF.describe(counting, "1")) as reader:
        assert np.array_equal(reader.read(box)[0], expected)
