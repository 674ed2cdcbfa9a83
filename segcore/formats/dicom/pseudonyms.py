"""Pseudonyms: keyed hashes in place of the identifiers in DICOM files.

HMAC-SHA256 (RFC 2104). With a secret key in MASKLOOM_PSEUDONYM_KEY nobody without the key can find
out which series a hash belongs to. Without it the key is public: then somebody who knows an
identifier can check whether its hash occurs, but cannot read identifiers from hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import unicodedata

KEY = "MASKLOOM_PSEUDONYM_KEY"
"""Environment variable with the key; workers need the same one."""
_PUBLIC_KEY = b"maskloom"
_SHORTEST = 4
"""Letters of a name or number that are looked for in paths: shorter ones occur by chance."""
_NOBODY = ("anonymous", "anonymized", "anonymised", "dicom", "name", "patient", "test", "unknown")


def pseudonym(identifier: str, length: int = 12) -> str:
    """The first hexadecimal digits of the keyed hash of an identifier."""
    return hmac.new(_key(), identifier.encode(), hashlib.sha256).hexdigest()[:length]


def key_version() -> str:
    """Differs for different keys, and does not reveal them."""
    return pseudonym("key", 8)


def appears_in(path: str, *secrets: str) -> bool:
    """Whether a path holds a word of a name, or a number, of at least four characters.

    >>> appears_in("/scans/doe/1.dcm", "Doe^Jane"), appears_in("/scans/Jane/1.dcm", "Doe^Jane")
    (False, True)
    """
    folded = _folded(path)
    return any(
        word in folded
        for secret in secrets
        for word in re.split(r"[\s^=_,]+", _folded(secret))
        if len(word) >= _SHORTEST and word not in _NOBODY
    )


def _folded(text: str) -> str:
    """Text in lower case without accents."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


def _key() -> bytes:
    return os.environ.get(KEY, "").encode() or _PUBLIC_KEY
