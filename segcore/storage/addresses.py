"""Addresses: where a file is read from, and which part of the address may be written down.

A URI in a table, plan, name or message contains no secret and is valid UTF-8. Two kinds of address
do not qualify: URLs with a temporary signature (`?X-Amz-Signature=...`, `?sig=...`, `?token=...`),
and file names that are not UTF-8. Such a file is known everywhere by a URI without them. The
address itself stays in the memory of the processes that read the file: they take it from their jobs
and call `remember_address`.

An address with a password (`https://user:password@host`) is refused: unlike a signature, a password
opens more than one file and does not expire.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from maskloom.segcore.errors import RecipeError

_USER = re.compile(r"([A-Za-z][\w+.-]*)://([^/\s?#'\"]+)@")
_NAMES_OF_SECRETS = (
    r"x-(?:amz|goog|oss|cos|ms)-[\w-]*|awsaccesskeyid|googleaccessid|ossaccesskeyid|"
    r"signature|sig|sas|key|jwt|code|pat|auth|authorization|"
    r"mac|hdn(?:ts|tl|ea)|(?:[\w.-]*[_.-])?(?:hmac|oauth)[\w.-]*|"
    r"[\w.-]*(?:token|secret|passw|passphrase|pwd|credential|"
    r"api[_-]?key|access[_-]?key|subscription[_-]?key)[\w.-]*"
)
_SECRET_NAME = re.compile(_NAMES_OF_SECRETS, re.IGNORECASE)
_SECRET_PARAMETER = re.compile(rf"([?&;#](?:{_NAMES_OF_SECRETS})=)[^&;\s'\"<>)]+", re.IGNORECASE)
_COMPANION_NAME = re.compile(
    r"expires|policy|key-pair-id|s[eprstv]|srt|sip|spr|sk[estv]|sk[ot]id", re.IGNORECASE
)
"""Parameters that belong to a signature (CloudFront, Azure). Without a signature they have another
meaning.
"""
_WEB = ("http://", "https://")

_addresses: dict[str, str] = {}


def _never(_: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class RelativeToRecipe:
    """Marks a field of type `str` as the path of a file: `Annotated[str, RelativeToRecipe()]`.

    In a recipe a relative path is below the recipe's folder.
    """

    unless: Callable[[str], bool] = _never
    """Whether a value is a name instead of a path, and stays as it is."""


def is_web(address: str) -> bool:
    """Whether the address is an HTTP URL, which may have a query."""
    return address[:8].lower().startswith(_WEB)


def has_password(address: str) -> bool:
    """Whether a URI contains a password. In an HTTP URL any user counts, since it may be a token.

    >>> has_password("https://me:word@host/a.tif")
    True
    >>> has_password("abfs://container@account/a.tif")
    False
    >>> has_password("github://org:repo@main/a.tif")
    False
    """
    return any(_is_secret(found) for found in _USER.finditer(address))


def require_no_password(address: str, where: str) -> None:
    """Raise `RecipeError` if an address contains a password. `where` names the source of the
    address.
    """
    if has_password(address):
        raise RecipeError(
            f"{where}: an address must not hold a password or token, since addresses are written "
            "into tables and names. Put it where the store looks "
            "for it: the environment, a profile, or for https:// the file ~/.netrc with storage: "
            "{https: {client_kwargs: {trust_env: true}}}."
        )


def is_signed(address: str) -> bool:
    """Whether the query of an address, or the fragment of an HTTP URL, has a secret parameter. A
    path has no query.
    """
    said = [*_names(_query(address)), *_names(_fragment(address))] if "://" in address else []
    return any(_SECRET_NAME.fullmatch(name) for name in said)


def without_signature(address: str) -> str:
    """The address without the secret parameters of its query and those that accompany them. An HTTP
    URL also loses its fragment, which is never sent to a server.

    >>> without_signature("https://host/a.tif?item=3&X-Amz-Expires=60&X-Amz-Signature=c0ffee")
    'https://host/a.tif?item=3'
    """
    if is_web(address):
        address = address.partition("#")[0]
    if not is_signed(address):
        return address
    path, _, query = address.partition("?")
    kept = [
        part
        for part, name in zip(_parts(query), _names(query), strict=True)
        if not _belongs_to_signature(name)
    ]
    return f"{path}?{'&'.join(kept)}" if kept else path


def without_query(address: str) -> str:
    """An HTTP URL without query and fragment; any other address unchanged."""
    return re.split("[?#]", address, maxsplit=1)[0] if is_web(address) else address


def redacted(text: str) -> str:
    """Text that may be written down: passwords and signatures masked, bytes that are not UTF-8
    escaped.

    >>> redacted("403 for https://me:word@host/a.tif?item=3&sig=c0ffee")
    '403 for https://***@host/a.tif?item=3&sig=***'
    """
    text = _USER.sub(lambda found: f"{found[1]}://***@" if _is_secret(found) else found[0], text)
    return _SECRET_PARAMETER.sub(r"\1***", text).encode("utf-8", "backslashreplace").decode()


def remember_address(uri: str, address: str | None) -> None:
    """Remember in this process where the file with this URI is read from. None: from the URI
    itself.
    """
    if address is not None:
        _addresses[uri] = address


def address_of(uri: str) -> str:
    """The address from which the file with this URI is read."""
    return _addresses.get(uri, uri)


def _is_secret(found: re.Match[str]) -> bool:
    scheme, user = found[1].lower(), found[2]
    # github://organisation:repository@branch/path contains no secret.
    return scheme in ("http", "https") or (":" in user and scheme != "github")


def _query(address: str) -> str:
    return address.partition("?")[2].partition("#")[0]


def _fragment(address: str) -> str:
    return address.partition("#")[2] if is_web(address) else ""


def _parts(query: str) -> list[str]:
    return re.split("[&;]", query.partition("#")[0])


def _names(query: str) -> list[str]:
    return [part.partition("=")[0] for part in _parts(query)]


def _belongs_to_signature(name: str) -> bool:
    return bool(_SECRET_NAME.fullmatch(name) or _COMPANION_NAME.fullmatch(name))
