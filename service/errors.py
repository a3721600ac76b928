"""The errors of the service: one tree, and one table that maps it to HTTP statuses. Only the API reads the table."""

from collections.abc import Mapping

from models.preprocessing import InvalidInputError, UnsupportedFormatError


class ServiceError(Exception):
    """A request that cannot be answered: what is wrong, the value, the limit and the remedy."""

    def __init__(self, problem: str, *, value: object = None, limit: object = None, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.value, self.limit, self.remedy = value, limit, remedy


class UnknownModelError(ServiceError):
    """No model of this name is served."""


class UnknownLayerError(ServiceError):
    """No layer of the model matches the pattern."""


class UnsupportedMediaTypeError(ServiceError):
    """The Content-Type is none that the model reads."""


class InvalidRequestError(ServiceError):
    """The body or a parameter is not what the endpoint takes."""


class BodyTooLargeError(ServiceError):
    """The body is larger than the limit."""


class TooManyValuesError(ServiceError):
    """The answer would hold more statistics than the limit."""


class OverloadedError(ServiceError):
    """The queue of the model is full."""


class NotReadyError(ServiceError):
    """The models are still being loaded, or could not be loaded."""


STATUSES: Mapping[type[Exception], int] = {
    UnknownModelError: 404,
    UnknownLayerError: 404,
    BodyTooLargeError: 413,
    UnsupportedMediaTypeError: 415,
    UnsupportedFormatError: 422,
    InvalidInputError: 422,
    InvalidRequestError: 422,
    TooManyValuesError: 422,
    OverloadedError: 429,
    NotReadyError: 503,
}
"""Exception -> HTTP status. The name of the class, in snake case and without `Error`, is the `code` of the answer."""
