"""SHA-512 without the price of `hashlib` (2.5 ms): the interpreter's own module."""

from __future__ import annotations


def sha512_hex(text: str) -> str:
    """The hexadecimal digest of `text` as UTF-8."""
    try:
        from _sha512 import sha512
    except ImportError:  # Python 3.12 and later
        from hashlib import sha512
    digest: str = sha512(text.encode()).hexdigest()
    return digest
