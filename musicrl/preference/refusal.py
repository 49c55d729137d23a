"""What the store refuses, each as one sentence that a listener's page may show."""

from __future__ import annotations


class Refusal(ValueError):
    """A request that breaks a rule of collection."""


class UnknownServing(Refusal):
    """Nothing was served to this rater under this token."""

    def __init__(self) -> None:
        super().__init__("nothing was served to this listener under this token")


class NotHeard(Refusal):
    """An answer before enough of the clips was played."""


class AlreadyAnswered(Refusal):
    """Another answer for what was answered before."""


class Impossible(Refusal):
    """More playback than time, or a span outside the clip."""


class UnknownPrompt(Refusal):
    """A text that no clip is there for, or that is none."""


class Finished(Refusal):
    """Nothing is left for this rater."""


class Busy(Refusal):
    """Too many wait already."""


class TooOften(Refusal):
    """More requests than the limit allows."""

    def __init__(self, seconds: float) -> None:
        super().__init__("too many requests: wait a moment")
        self.seconds = seconds
