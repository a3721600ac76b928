"""The errors of the service: one tree, and for each part of the API a table that maps it to HTTP statuses."""

from collections.abc import Mapping

from models.preprocessing import InvalidInputError, UnsupportedFormatError


class ServiceError(Exception):
    """A request that cannot be answered: what is wrong, the value, the limit and the remedy."""

    def __init__(self, problem: str, *, value: object = None, limit: object = None, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.value, self.limit, self.remedy = value, limit, remedy


class UnauthorizedError(ServiceError):
    """No API key, or one that is not known."""


class ForbiddenError(ServiceError):
    """The API key does not open this route."""


class UnknownModelError(ServiceError):
    """No model or version of this name is served."""


class UnknownLayerError(ServiceError):
    """No layer of the model matches the pattern."""


class NotAcceptableError(ServiceError):
    """No media type that the client accepts is offered."""


class SlowRequestError(ServiceError):
    """The head or the body did not arrive in time."""


class InvalidHttpError(ServiceError):
    """What came is not HTTP."""


class HeadTooLargeError(ServiceError):
    """The first line and the headers of the request are larger than the limit."""


class BodyTooLargeError(ServiceError):
    """The body is larger than the limit."""


class UnsupportedMediaTypeError(ServiceError):
    """The Content-Type or Content-Encoding is none that the endpoint reads."""


class InvalidRequestError(ServiceError):
    """The body or a parameter is not what the endpoint takes."""


class NoReferenceError(ServiceError):
    """What is asked for needs statistics that the artifact does not bring."""


class TooManyValuesError(ServiceError):
    """The answer would hold more statistics than the limit."""

    @classmethod
    def check(cls, values: int, limit: int, remedy: str) -> None:
        """Bounds an answer of so many statistics.

        Raises:
            TooManyValuesError: they are more than `limit`; the remedy names the setting too.
        """
        if values > limit:
            raise cls(
                f"the answer would hold {values} statistics, more than {limit}",
                value=values,
                limit=limit,
                remedy=f"{remedy}, or raise NORMSCOPE_MAX_STATISTICS_VALUES",
            )


class ModelRunError(ServiceError):
    """The model cannot run on this input."""


class LoadError(ServiceError):
    """A model cannot be loaded; what served before goes on serving."""


class ClientGoneError(ServiceError):
    """The client went away before the answer was ready; the work was dropped."""


class OverloadedError(ServiceError):
    """The queue of the model is full."""


class NotOfferedError(ServiceError):
    """A part of a protocol that this server does not have."""


class NotReadyError(ServiceError):
    """The models are still being loaded, or could not be loaded, or the service is about to stop."""


class DeadlineExceededError(ServiceError):
    """The answer was not ready in time; the work was dropped."""


STATUSES: Mapping[type[Exception], int] = {
    InvalidHttpError: 400,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    UnknownModelError: 404,
    UnknownLayerError: 404,
    NotAcceptableError: 406,
    SlowRequestError: 408,
    NoReferenceError: 409,
    BodyTooLargeError: 413,
    UnsupportedMediaTypeError: 415,
    UnsupportedFormatError: 422,
    InvalidInputError: 422,
    InvalidRequestError: 422,
    TooManyValuesError: 422,
    ModelRunError: 422,
    LoadError: 422,
    OverloadedError: 429,
    HeadTooLargeError: 431,
    ClientGoneError: 499,
    NotOfferedError: 501,
    NotReadyError: 503,
    DeadlineExceededError: 504,
}
"""Exception -> HTTP status under /v1. The class name, in snake case and without `Error`, is the `code` of the answer."""

OIP_STATUSES: Mapping[type[Exception], int] = {
    kind: 400 if status in (406, 415, 422) else status for kind, status in STATUSES.items()
} | {OverloadedError: 503}
"""The same under /v2, where invalid input is 400 and a full queue 503, as in Triton."""
