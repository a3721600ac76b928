"""API keys: the headers of a request, or the metadata of a call, in; an error out unless a key opens what is asked for.

Keys are compared by their SHA-256 in constant time, each with all that are known. No key is ever logged or put into an error.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import SecretStr

from service.errors import ForbiddenError, UnauthorizedError
from service.settings import Settings

_REMEDY = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`"


@dataclass(frozen=True)
class Keys:
    """The known keys. Without plain keys, only administration is closed; without admin keys, a plain key opens it too."""

    plain: tuple[bytes, ...]
    admin: tuple[bytes, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Keys | None":
        """The keys of the settings; None if no key is ever asked for."""
        if not settings.api_keys and not settings.admin_api_keys:
            return None
        return cls(_digests(settings.api_keys), _digests(settings.admin_api_keys))

    def asks(self, *, administers: bool) -> bool:
        """Whether a request needs a key at all."""
        return bool(self.plain or (administers and self.admin))

    def check(self, headers: Iterable[tuple[bytes, bytes]], *, administers: bool) -> None:
        """Returns if the headers (names in lower case) carry a key that opens the request.

        Args:
            headers: names and values as they were sent, in any encoding.
            administers: whether the request loads or unloads a model.

        Raises:
            UnauthorizedError: a key is needed, and there is none or one that is not known.
            ForbiddenError: the key is known, but the request needs an admin key.
        """
        if not self.asks(administers=administers):
            return
        presented = _presented(headers)
        is_plain, is_admin = _any_known(presented, self.plain), _any_known(presented, self.admin)
        if is_admin or (is_plain and not (administers and self.admin)):
            return
        if is_plain:
            raise ForbiddenError(
                "this API key may not load or unload models", limit="an admin key", remedy="send a key of NORMSCOPE_ADMIN_API_KEYS"
            )
        problem = "the API key is not known" if presented else "the request has no API key"
        raise UnauthorizedError(problem, limit="a known API key", remedy=_REMEDY)


def _digests(keys: tuple[SecretStr, ...]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.get_secret_value().encode()).digest() for key in keys)


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The digests of the last `X-API-Key` and of the last bearer token: both count, as a proxy may set one of them for itself."""
    found = {}
    for name, value in headers:
        if name == b"x-api-key":
            found[name] = value.strip()
        elif name == b"authorization":
            scheme, _, token = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found[name] = token.strip()
    return [hashlib.sha256(key).digest() for key in found.values() if key]


def _any_known(presented: list[bytes], known: tuple[bytes, ...]) -> bool:
    matches = [hmac.compare_digest(one, other) for one in presented for other in known]  # all, so that time tells nothing
    return any(matches)
