"""Uploads in parts that a killed process has left at an S3 store.

S3 takes large objects in parts. The parts of an upload that is never finished are in no listing of
objects, and are paid for until somebody removes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from maskloom.segcore.errors import StoreError
from maskloom.segcore.storage.filesystems import filesystem, store_errors
from maskloom.segcore.storage.object_stores import is_s3
from maskloom.segcore.storage.store import Store


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that has begun and not ended."""

    name: str
    """Name of the object below the store's root."""
    upload_id: str
    began: float
    """Time in seconds, by the store's clock."""


def unfinished_uploads(store: Store) -> list[Upload]:
    """The unfinished uploads of a store, without those that this user may not list."""
    fs, root = filesystem(store.root)
    if not is_s3(fs):
        return []
    bucket, prefix, _ = fs.split_path(root)
    prefix = f"{prefix}/" if prefix else ""
    try:
        with store_errors(f"list the unfinished uploads of {store.root}"):
            return list(_listed(fs, bucket, prefix))
    except (StoreError, FileNotFoundError):
        # Some servers do not have this request, and some users may not make it.
        return []


def abort(store: Store, upload: Upload) -> None:
    """Remove the parts of an upload. Raises `StoreError`."""
    fs, path = filesystem(store.uri(upload.name))
    bucket, key, _ = fs.split_path(path)
    with store_errors(f"end the upload of {store.uri(upload.name)}"):
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.upload_id)


def _listed(fs: Any, bucket: str, prefix: str) -> Iterator[Upload]:
    page: dict[str, str] = {}
    while True:
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **page)
        for each in found.get("Uploads") or []:
            yield Upload(
                each["Key"][len(prefix) :], each["UploadId"], each["Initiated"].timestamp()
            )
        if not found.get("IsTruncated"):
            return
        page = {
            "KeyMarker": found["NextKeyMarker"],
            "UploadIdMarker": found["NextUploadIdMarker"],
        }
