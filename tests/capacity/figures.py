"""What was measured, and what it may be at most."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; without a goal it is only told."""

    what: str
    value: float
    unit: str
    goal_max: float | None = None

    @property
    def is_met(self) -> bool:
        return self.goal_max is None or self.value <= self.goal_max

    def line(self) -> str:
        """One line for people."""
        goal = "" if self.goal_max is None else f"  (at most {self.goal_max:g})"
        return f"{self.what:44} {self.value:10,.1f} {self.unit:2}{goal}{'' if self.is_met else '  MISSED'}"
