"""Replies of stores: judged by their status, in whatever words and errors they come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from maskloom.segcore.storage.object_stores import status_of, ways_to_copy


def of_botocore(status: int, code: str) -> Exception:
    error = Exception(f"An error occurred ({code})")
    error.response = {  # type: ignore[attr-defined]
        "Error": {"Code": code},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def with_fields(**fields: Any) -> Exception:
    error = Exception("no")
    error.__dict__.update(fields)
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        # s3fs makes FileExistsError of a 412 in moto's words, and OSError of one in SeaweedFS's.
        (caused(FileExistsError(), of_botocore(412, "PreconditionFailed")), 412),
        (caused(OSError(22, "At least one"), of_botocore(412, "PreconditionFailed")), 412),
        (caused(OSError(22, "x"), of_botocore(412, "In words of its own")), 412),
        (caused(OSError(16, "busy"), of_botocore(409, "ConditionalRequestConflict")), 409),
        (caused(FileNotFoundError(), of_botocore(404, "NoSuchKey")), 404),
        (caused(PermissionError(), of_botocore(403, "PreconditionFailed")), 403),
        # gcsfs and adlfs raise these without a cause.
        (FileExistsError("bucket/key"), 412),
        (FileNotFoundError("bucket/key"), 404),
        (caused(OSError("there is no such object"), FileExistsError("key")), 412),
        (with_fields(code="412"), 412),
        (with_fields(status_code=409), 409),
        (with_fields(status=503), 503),
        (OSError(28, "No space left on device"), None),
        (ValueError("412"), None),
    ],
)
def test_the_status_is_found_wherever_a_client_keeps_it(error: Exception, status: int | None):
    assert status_of(error) == status


@pytest.mark.parametrize(("base", "condition"), [(None, "0"), ("17", "17")])
def test_a_large_object_of_google_is_copied_by_several_requests_on_one_condition(base, condition):
    asked: list[dict[str, Any]] = []

    def call(method: str, path: str, *places: str, **options: Any) -> dict[str, Any]:
        asked.append({"places": places, **options})
        if len(asked) == 3:
            return {"done": True}
        return {"done": False, "rewriteToken": f"token {len(asked)}"}

    fs: Any = SimpleNamespace(
        protocol=("gs", "gcs"), call=call, split_path=lambda path: (*path.split("/", 1), None)
    )
    (copies,) = ways_to_copy(fs)
    copies.copy("bucket/staging/a", "bucket/a", base)
    assert [each["rewriteToken"] for each in asked] == [None, "token 1", "token 2"]
    assert {each["ifGenerationMatch"] for each in asked} == {condition}
    assert {each["places"] for each in asked} == {("bucket", "staging/a", "bucket", "a")}
