"""What an error of the storage means, told without importing the package that raised it."""

from __future__ import annotations

import errno

from infra.errors import UserError

REFUSED = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "NoAuthTokenError",
    "SSOError",
    "LoginError",
}
"""Errors of botocore (and those derived from them) that better credentials mend."""
PASSING = {"HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError"}
"""Errors of botocore that may pass; its others are of its settings."""
LASTING = {"InvalidURL", "NonHttpUrlClientError", "RedirectClientError", "ClientConnectorCertificateError"}
"""Errors of aiohttp that do not pass; its others are of the connection."""
PASSING_STATUS = (408, 425, 429)
"""HTTP answers that ask for patience, beside all from 500."""


class ShortAnswer(ConnectionError):
    """Fewer bytes than were asked for."""


class RangesIgnored(Exception):
    """The server sent a whole file in place of a part of it."""


def judge(url: str, error: BaseException) -> FileNotFoundError | UserError | None:
    """The file is missing, the user must act, or (None) asking again may help. Raises what is no fault of storage."""
    cause = error.__cause__ or error  # s3fs and fsspec put the first error there
    status = _status(error) or _status(cause)
    names = {kind.__name__ for kind in (*type(error).__mro__, *type(cause).__mro__)}
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and cause is error):
        return FileNotFoundError(errno.ENOENT, "no such file", url)
    if isinstance(error, RangesIgnored):
        return UserError(
            f"{url}: the server does not serve ranges, it sends whole files; "
            "use a server that does (nginx, S3, ...), or copy the data to a local directory"
        )
    if isinstance(error, PermissionError) or status in (401, 403) or names & REFUSED:
        return UserError(f"{url} cannot be read: access refused ({said(cause)}); {_remedy(url)}")
    if isinstance(error, (ConnectionError, TimeoutError)) or _may_pass(cause, status, names):
        return None
    if status is None and _package(cause) not in ("aiohttp", "aiobotocore", "botocore"):
        raise error
    return UserError(f"{url} cannot be read: {said(cause)}; correct the URL or the settings of the storage")


def said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__} {error}".split())


def _may_pass(error: BaseException, status: int | None, names: set[str]) -> bool:
    if status is not None:
        return status in PASSING_STATUS or status >= 500
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if _package(error) == "aiohttp":
        return not names & LASTING
    return _package(error) in ("aiobotocore", "botocore") and bool(names & PASSING)


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error of aiohttp or botocore."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _remedy(url: str) -> str:
    if url.startswith("s3:"):
        return (
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to credentials that may read and list "
            "it, or FSSPEC_S3_ANON=true where it is public"
        )
    return "put a name and a password for its host into ~/.netrc, or let the server hand it out to everybody"
