"""A fault, or a kill, at any step of a fake that counts its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Killed(BaseException):
    """The process ends here: nothing catches it, nothing after it runs."""


class Steps:
    """The steps that a fake takes, and the fault that was set for one of them."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        """Every step taken so far, such as `rename /a/b`."""
        self._fault: Callable[[], BaseException] | None = None
        self._countdown = 0
        self._lasting = False

    def kill_at(self, step: int) -> None:
        """End the process before the step-th step from now (1 for the next)."""
        self._arm(step, Killed)

    def heal(self) -> None:
        """No more faults."""
        self._fault = None

    def _arm(self, step: int, fault: Callable[[], BaseException], *, lasting: bool = False) -> None:
        """Set a fault for the step-th step from now; `lasting`: and all after it."""
        self._fault, self._countdown, self._lasting = fault, step, lasting

    def _step(self, text: str) -> None:
        """Take a step, or the fault that was set for it."""
        if self._fault is not None:
            self._countdown -= 1
            if self._countdown <= 0:
                fault = self._fault
                if not self._lasting:
                    self._fault = None
                raise fault()
        self.steps.append(text)
