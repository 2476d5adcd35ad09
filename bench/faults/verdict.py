"""The verdict of the oracle."""

from dataclasses import dataclass, field


@dataclass
class Verdict:
    """The broken promises: for each kind the numbers of its events, with a reason.

    A negative number is that of no event.
    """

    lost: dict[int, str] = field(default_factory=dict)
    doubled: dict[int, str] = field(default_factory=dict)
    lied: dict[int, str] = field(default_factory=dict)
    leaked: dict[int, str] = field(default_factory=dict)
    rows: int = 0
    dropped_rows: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.lied or self.leaked)
