"""What of an address may be written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.pipeline.jobs import DescribeJob
from maskloom.segcore.pipeline.reading import open_planned
from maskloom.segcore.pipeline.worker import describe
from maskloom.segcore.raster.source import Source
from maskloom.segcore.storage import addresses
from maskloom.segcore.storage.addresses import (
    has_password,
    is_signed,
    redacted,
    require_no_password,
    without_signature,
)
from maskloom.segcore.storage.filesystems import current_version

SECRET = "c0ffeeC0FFEE42"


@pytest.mark.parametrize(
    ("signed", "plain"),
    [
        (
            f"https://b.s3.amazonaws.com/a.tif?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={SECRET}&X-Amz-Expires=60&X-Amz-Signature={SECRET}",
            "https://b.s3.amazonaws.com/a.tif",
        ),
        (
            (
                "https://b.s3.amazonaws.com/a.tif?versionId=7&AWSAccessKeyId=AK&Expires=1"
                f"&Signature={SECRET}"
            ),
            "https://b.s3.amazonaws.com/a.tif?versionId=7",
        ),
        (
            (
                "https://a.blob.core.windows.net/c/a.tif?sv=2025&st=x&se=y&sr=b&sp=r&skoid=z"
                f"&sktid=t&sig={SECRET}"
            ),
            "https://a.blob.core.windows.net/c/a.tif",
        ),
        (
            f"https://storage.googleapis.com/b/a.tif?X-Goog-Date=1&X-Goog-Signature={SECRET}",
            "https://storage.googleapis.com/b/a.tif",
        ),
        (
            f"https://d.cloudfront.net/a.tif?Policy=p&Signature={SECRET}&Key-Pair-Id=K",
            "https://d.cloudfront.net/a.tif",
        ),
        (f"https://h/get?scene=3&access_token={SECRET}", "https://h/get?scene=3"),
        (f"https://h/a.tif?apikey={SECRET}", "https://h/a.tif"),
        (f"https://h/a.tif?n=1&hmac={SECRET}", "https://h/a.tif?n=1"),
        (f"https://h/a.tif?x_hmac_sha256={SECRET}&hdnts={SECRET}&mac={SECRET}", "https://h/a.tif"),
        (f"https://h/a.tif?n=1#token={SECRET}", "https://h/a.tif?n=1"),
    ],
)
def test_signatures_are_left_out_and_the_rest_of_the_address_stays(signed: str, plain: str) -> None:
    assert is_signed(signed)
    assert without_signature(signed) == plain
    assert SECRET not in redacted(f"403 Forbidden, url=URL('{signed}')")


def test_a_url_loses_its_fragment_and_other_names_keep_theirs() -> None:
    assert without_signature("https://h/a.tif?n=1#page") == "https://h/a.tif?n=1"
    assert without_signature("s3://b/a#token=1.tif") == "s3://b/a#token=1.tif"
    assert not is_signed("s3://b/a#token=1.tif")


@pytest.mark.parametrize(
    "address",
    [
        "https://h/a.tif?item=3&se=4",
        "https://h/a.tif?author=me&expires=1",
        "/data/a?token=x.png",
        "s3://b/a.tif",
        "https://h/a?b",
        "https://h/a.tif?machine=3&smack=4",
    ],
)
def test_an_address_without_a_signature_is_as_it_was(address: str) -> None:
    assert without_signature(address) == address
    assert not is_signed(address)


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        (f"https://me:{SECRET}@h/a.tif", True),
        (f"https://{SECRET}@h/a.tif", True),
        (f"sftp://me:{SECRET}@h/a.tif", True),
        (f"simplecache::https://me:{SECRET}@h/a.tif", True),
        ("sftp://me@h/a.tif", False),
        ("abfs://container@account/a.tif", False),
        ("github://org:repo@main/a.tif", False),
        ("https://h:8080/a@b:c.tif", False),
        ("s3://b/a:b@c.tif", False),
    ],
)
def test_passwords_are_known_from_users_and_ports(address: str, secret: bool) -> None:
    assert has_password(address) == secret
    assert SECRET not in redacted(f"cannot open {address}")
    if secret:
        with pytest.raises(RecipeError, match="must not hold a password") as refusal:
            require_no_password(address, "inputs.0")
        assert SECRET not in str(refusal.value)
    else:
        assert redacted(address) == address


@given(st.text())
def test_what_is_written_is_utf8_and_stays_what_it_is(text: str) -> None:
    once = redacted(text)
    assert once.encode("utf-8").decode() == once
    assert redacted(once) == once


def test_bytes_of_a_name_that_are_not_utf8_are_spelled_out() -> None:
    assert redacted("caf\udce9.tif") == "caf\\udce9.tif"


def test_jobs_tell_workers_where_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_addresses", {})
    Image.new("RGB", (3, 2)).save(tmp_path / "real.png")
    real = str(tmp_path / "real.png")
    source = Source("https://host/a.png", "a", current_version(real), 1, address=real)

    (item,) = describe(DescribeJob((source,)))

    assert item.spec is not None
    assert (item.spec.location, item.spec.shape) == ("https://host/a.png", (2, 3))
    monkeypatch.setattr(addresses, "_addresses", {})
    with open_planned(item, item.spec) as reader:
        assert reader.read(Box((0, 0), (2, 3)))[0].shape == (2, 3, 3)
