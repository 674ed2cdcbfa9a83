"""List files, which name inputs, as people and spreadsheets write them.

A `.txt` file has one input per line; `.csv` and `.parquet` files have a column `uri`, and perhaps
a column `acquired` with the dates of the images. Text is
UTF-8, UTF-16 or UTF-32; other text is read as Windows-1252, which older spreadsheets write and
which includes Latin-1. Values are separated by commas, semicolons, tabs or bars. Relative names are
below the list's folder.
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import posixpath
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NoReturn

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.dates import from_iso, utc_text
from maskloom.segcore.storage.addresses import redacted, without_query

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".parquet", ".txt")
LARGEST = 2**30
"""Most bytes of a list."""
MOST_ROWS = 10_000_000
COLUMN = "uri"
DATES = "acquired"
"""The column with dates, which a list may have."""
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""UTF-32 comes first, since its byte order mark begins with that of UTF-16."""


def is_list(address: str) -> bool:
    """Whether an input is a list by its suffix."""
    return without_query(address).lower().endswith(SUFFIXES)


def read_dated(entry: str, content: bytes) -> tuple[list[str], dict[str, str]]:
    """The inputs that a list names, and when those were acquired for which it says so, as text in
    UTC. Raises `RecipeError` if it names none, has another text as a date, or cannot be read.

    Bytes that are not UTF-8 are returned as surrogates, since names of files may have any bytes;
    see `spelled`.
    """
    dates: dict[str, str] = {}
    uris = (
        _from_parquet(entry, content, dates)
        if without_query(entry).lower().endswith(".parquet")
        else _from_text(entry, content, dates)
    )
    if not uris:
        raise RecipeError(f"inputs: the list {entry!r} names no image.")
    return uris, dates


def read_column(entry: str, content: bytes, column: str) -> dict[str, str]:
    """The text in a column of a list (.csv or .parquet), for each input that it names; inputs
    without one are left out. Raises `RecipeError` if the list has no such column, or cannot be
    read.
    """
    if without_query(entry).lower().endswith(".parquet"):
        names, columns = _columns_of_parquet(entry, content, column)
    else:
        names, columns = _columns_of_csv(entry, _decoded(entry, content), column)
    if column not in columns:
        raise RecipeError(
            f"The list {entry!r} has no column {column!r}; it has "
            f"{', '.join(columns)[:200] or 'none'}."
        )
    return {name: text for name, text in names if name and text}


def _columns_of_csv(entry: str, text: str, column: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Each row's input and text in this column, and the names of all columns."""
    separator, text = _separated(entry, text)
    header = [
        name.strip() for name in next(csv.reader([text.splitlines()[0]], delimiter=separator))
    ]
    if column not in header:
        return [], header
    places = _fields(header).index(COLUMN), header.index(column)
    rows = [row for row in _rows(entry, text, separator) if len(row) > max(places)]
    return [(row[places[0]].strip(), row[places[1]].strip()) for row in rows], header


def _columns_of_parquet(
    entry: str, content: bytes, column: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """As `_columns_of_csv`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
            header = file.schema_arrow.names
            if column not in header or COLUMN not in header:
                return [], header
            found = file.read(columns=[COLUMN, column], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise RecipeError(
            f"inputs: the list {entry!r} cannot be read as Parquet: {error}. Write it again."
        ) from error
    rows = zip(found[COLUMN].to_pylist(), found[column].to_pylist(), strict=True)
    return [(str(uri or ""), "" if text is None else str(text)) for uri, text in rows], header


def _date(entry: str, uri: str, said: object) -> str:
    """A date in a list as text in UTC. Raises `RecipeError`."""
    found = utc_text(said) if isinstance(said, datetime) else from_iso(str(said))
    if found is None:
        raise RecipeError(
            f"inputs: the list {entry!r} has {str(said)!r} as `{DATES}` of {redacted(uri)!r}; "
            "expected a date like 2026-05-13 or 2026-05-13T10:20:31Z."
        )
    return found


def spelled(name: str) -> str:
    r"""A name in a list, read as Windows-1252 if it is not UTF-8.

    >>> spelled("caf\udce9.tif")
    'café.tif'
    """
    raw = name.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def absolute(uri: str, entry: str) -> str:
    """The address of a name in the list `entry`: a relative name is below the list's folder, with
    `..` resolved.

    >>> absolute("../in/a.tif", "s3://bucket/lists/today.csv")
    's3://bucket/in/a.tif'
    """
    if "://" in uri or uri.startswith("/"):
        return uri
    protocol, mark, folder = posixpath.dirname(without_query(entry)).rpartition("://")
    joined = posixpath.join(folder, uri)
    if mark and {".", ".."} & set(joined.split("/")):
        # `..` cannot leave a bucket or a host.
        host, _, path = joined.partition("/")
        joined = host + posixpath.normpath(f"/{path}")
    return f"{protocol}{mark}{joined}"


def _from_text(entry: str, content: bytes, dates: dict[str, str]) -> list[str]:
    text = _decoded(entry, content)
    if not without_query(entry).lower().endswith(".csv"):
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith("#") and line != COLUMN]
    return list(_from_csv(entry, text, dates))


def _decoded(entry: str, content: bytes) -> str:
    encoding = next(
        (name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None
    )
    if encoding is not None:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"inputs: the list {entry!r} begins like {encoding} text but is not: {error}. Save "
                "it as UTF-8."
            ) from error
    if b"\0" in content:
        raise RecipeError(
            f"inputs: the list {entry!r} is not text (it has zero bytes). Save it as text in "
            "UTF-8, or correct its suffix."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        log.warning(
            "The list %r is not UTF-8; names with other letters are read as Windows-1252 "
            "(Latin-1).",
            entry,
        )
        return content.decode("utf-8", "surrogateescape")


def _separated(entry: str, text: str) -> tuple[str, str]:
    """The separator of CSV text, and the text from its header on. Raises `RecipeError` without one
    column that names the inputs.
    """
    # Excel may write the separator in a line before the header.
    declared, _, rest = text.partition("\n")
    if declared.strip().lower().startswith("sep=") and len(declared.strip()) <= len("sep=x"):
        text = rest
    header = next(iter(text.splitlines()), "")
    columns = {
        separator: _fields(next(csv.reader([header], delimiter=separator), []))
        for separator in _SEPARATORS
    }
    separator = next((separator for separator, names in columns.items() if COLUMN in names), None)
    if separator is None:
        _refuse_columns(entry, *max(columns.items(), key=lambda item: len(item[1])))
    _require_one(entry, columns[separator])
    return separator, text


def _from_csv(entry: str, text: str, dates: dict[str, str]) -> Iterator[str]:
    separator, text = _separated(entry, text)
    columns = _fields(next(csv.reader([text.splitlines()[0]], delimiter=separator)))
    place, empty = columns.index(COLUMN), 0
    dated = columns.index(DATES) if DATES in columns else None
    for row in _rows(entry, text, separator):
        if len(row) > place and (uri := row[place].strip()):
            if dated is not None and len(row) > dated and row[dated].strip():
                dates[uri] = _date(entry, uri, row[dated].strip())
            yield uri
        else:
            empty += any(field.strip() for field in row)
    _warn_of_empty(entry, empty)


def _rows(entry: str, text: str, separator: str) -> Iterator[list[str]]:
    """The rows below the header. Raises `RecipeError` if a quote is not closed, which would join
    rows.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        next(reader)
        while True:
            line = reader.line_num + 1
            yield next(reader)
    except StopIteration:
        return
    except csv.Error as error:
        unclosed = (
            "a quote is not closed"
            if "unexpected end" in str(error) or "field larger" in str(error)
            else str(error)
        )
        raise RecipeError(
            f"inputs: the list {entry!r} cannot be read as CSV: {unclosed}, in the row that begins "
            f"in line {line}. Correct the quotes in that row."
        ) from error


def _warn_of_empty(entry: str, rows: int) -> None:
    if rows:
        log.warning(
            "The list %r has %d %s without a `%s`, left out.",
            entry,
            rows,
            "row" if rows == 1 else "rows",
            COLUMN,
        )


def _require_one(entry: str, columns: Sequence[str]) -> None:
    if columns.count(COLUMN) > 1:
        raise RecipeError(
            f"inputs: the list {entry!r} has {columns.count(COLUMN)} columns `{COLUMN}`. Keep the "
            "one that names the images."
        )


def _fields(header: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in header]


def _from_parquet(entry: str, content: bytes, dates: dict[str, str]) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(pa.BufferReader(content)).names
        if COLUMN not in names:
            _refuse_columns(entry, "", names)
        _require_one(entry, names)
        # Read as a dictionary, so that a long name in a million rows is in memory once.
        with pq.ParquetFile(
            pa.BufferReader(content), read_dictionary=[COLUMN], pre_buffer=False
        ) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise RecipeError(
                    f"inputs: the list {entry!r} has more than {MOST_ROWS} rows. Cut it into "
                    "several."
                )
            column = file.read(columns=[COLUMN], use_threads=False)[COLUMN]
            values, counts = column.value_counts().flatten()
            if DATES in names:
                said = file.read(columns=[DATES], use_threads=False)[DATES].to_pylist()
                rows = zip(column.to_pylist(), said, strict=True)
                dates.update((uri, _date(entry, uri, when)) for uri, when in rows if uri and when)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).rstrip(".")
        raise RecipeError(
            f"inputs: the list {entry!r} cannot be read as Parquet: {reason}. Write it again."
        ) from error
    uris = values.to_pylist()
    _warn_of_empty(
        entry, sum(count.as_py() for uri, count in zip(uris, counts, strict=True) if not uri)
    )
    return [str(uri) for uri in uris if uri]


def _refuse_columns(entry: str, separator: str, columns: Sequence[str]) -> NoReturn:
    apart = f" (separated by {_SEPARATORS[separator]})" if len(columns) > 1 and separator else ""
    found = ", ".join(columns[:20]) or "none"
    raise RecipeError(
        f"inputs: the list {entry!r} needs a column `{COLUMN}`; it has {found[:200]}{apart}. "
        "Rename the column that names the images."
    )
