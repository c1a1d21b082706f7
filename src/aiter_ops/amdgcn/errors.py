"""What the emulator raises."""

from __future__ import annotations


class EmulationError(Exception):
    """The program did what it must not, or something that is not known here.

    access: which of an instruction's accesses to memory it was, where it was one. `where`: line and text of the
    instruction, filled in by the launch.
    """

    where: str = ""

    def __init__(self, text: str, access: int | None = None) -> None:
        super().__init__(text)
        self.access = access

    def __str__(self) -> str:
        return f"{self.where}: {self.args[0]}" if self.where else str(self.args[0])


class Unsupported(EmulationError):
    """An instruction, an operand or a mode that is not modelled."""
