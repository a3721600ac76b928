"""A bound on the memory of inputs: as many requests as the queue takes, each of many photos, would be gigabytes once decoded."""

import threading

from service.errors import OverloadedError


class InputsInHand:
    """Counts the numbers in the inputs that are worked on or wait; from any thread."""

    def __init__(self, name: str, limit: int) -> None:
        """`limit` numbers in the inputs of the model `name`; a request alone may have more."""
        self._name, self._limit = name, limit
        self._elements = 0
        self._lock = threading.Lock()

    def take(self, elements: int) -> None:
        """Before the work on the inputs of one request; `give_back` comes after it.

        Raises:
            OverloadedError: there are others in hand, and with these they would hold more than the limit.
        """
        with self._lock:
            together = self._elements + elements
            if self._elements and together > self._limit:
                raise OverloadedError(
                    f"the inputs in hand of {self._name} would hold {together} numbers, more than {self._limit}",
                    value=together,
                    limit=self._limit,
                    remedy="try again later, send fewer inputs at once, or raise NORMSCOPE_MAX_QUEUE",
                )
            self._elements = together

    def give_back(self, elements: int) -> None:
        """After the work on inputs that were taken."""
        with self._lock:
            self._elements -= elements
