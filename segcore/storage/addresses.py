"""Addresses: where a file is read, and what of that may be written down.

A URI in a table, a plan, a name or a message holds no secret and is text that UTF-8 can hold. Two
kinds of address are not like that: URLs that are signed for a while (`?X-Amz-Signature=...`,
`?sig=...`, `?token=...`), and names of files that are not UTF-8. Such a file goes by its URI
everywhere; the address itself stays in the memory of the processes that read it, which `learn` it
from the jobs that they do.

A password in an address (`https://user:password@host`) is refused: unlike a signature it opens more
than one file, and does not run out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from maskloom.segcore.errors import RecipeError

_USER = re.compile(r"([A-Za-z][\w+.-]*)://([^/\s?#'\"]+)@")
_NAMES_OF_SECRETS = (
    r"x-(?:amz|goog|oss|cos|ms)-[\w-]*|awsaccesskeyid|googleaccessid|ossaccesskeyid|signature|sig|sas|key|jwt|code|pat|auth|authorization|"
    r"mac|hdn(?:ts|tl|ea)|(?:[\w.-]*[_.-])?(?:hmac|oauth)[\w.-]*|"
    r"[\w.-]*(?:token|secret|passw|passphrase|pwd|credential|api[_-]?key|access[_-]?key|subscription[_-]?key)[\w.-]*"
)
_SECRET_NAME = re.compile(_NAMES_OF_SECRETS, re.IGNORECASE)
_SECRET_PARAMETER = re.compile(rf"([?&;#](?:{_NAMES_OF_SECRETS})=)[^&;\s'\"<>)]+", re.IGNORECASE)
_COMPANION_NAME = re.compile(
    r"expires|policy|key-pair-id|s[eprstv]|srt|sip|spr|sk[estv]|sk[ot]id", re.IGNORECASE
)
"""Parameters that belong to a signature (CloudFront's, Azure's), and mean something else without
one.
"""
_WEB = ("http://", "https://")

_learnt: dict[str, str] = {}


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
    """Whether this is a URL, which may have a query."""
    return address.lower().startswith(_WEB)


def has_password(address: str) -> bool:
    """Whether a password stands in a URI. In a URL, where a token may be the user, any user counts.

    >>> has_password("https://me:word@host/a.tif"), has_password("abfs://container@account/a.tif"), has_password("github://org:repo@main/a.tif")
    (True, False, False)
    """
    return any(_is_secret(found) for found in _USER.finditer(address))


def require_no_password(address: str, where: str) -> None:
    """Raise `RecipeError` where a password stands in an address; `where` says whose it is."""
    if has_password(address):
        raise RecipeError(
            f"{where}: an address must not hold a password or token, since addresses are written "
            "into tables and names. Put it where the store looks "
            "for it: the environment, a profile, or for https:// the file ~/.netrc with storage: "
            "{https: {client_kwargs: {trust_env: true}}}."
        )


def is_signed(address: str) -> bool:
    """Whether the query of an address, or the fragment of a URL, has a secret parameter. A path has
    no query.
    """
    said = [*_names(_query(address)), *_names(_fragment(address))] if "://" in address else []
    return any(_SECRET_NAME.fullmatch(name) for name in said)


def unsigned(address: str) -> str:
    """The address without the secret parameters of its query, and those that go with them. A URL
    loses its fragment, which no server sees.

    >>> unsigned("https://host/a.tif?item=3&X-Amz-Expires=60&X-Amz-Signature=c0ffee")
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


def path_of(address: str) -> str:
    """The address without the query and fragment that a URL may have; other addresses as they
    are.
    """
    return re.split("[?#]", address, maxsplit=1)[0] if is_web(address) else address


def written(text: str) -> str:
    """Text as it may be written down: passwords and signatures of addresses left out, and what is
    not UTF-8 spelled out.

    >>> written("403 for https://me:word@host/a.tif?item=3&sig=c0ffee")
    '403 for https://***@host/a.tif?item=3&sig=***'
    """
    text = _USER.sub(lambda found: f"{found[1]}://***@" if _is_secret(found) else found[0], text)
    return _SECRET_PARAMETER.sub(r"\1***", text).encode("utf-8", "backslashreplace").decode()


def learn(uri: str, address: str | None) -> None:
    """Remember in this process where the file of a URI is read. None: there, by the URI itself."""
    if address is not None:
        _learnt[uri] = address


def address_of(uri: str) -> str:
    """Where the file of a URI is read."""
    return _learnt.get(uri, uri)


def _is_secret(found: re.Match[str]) -> bool:
    scheme, user = found[1].lower(), found[2]
    # github://organisation:repository@branch/path holds no secret.
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
