"""What the emulator raises."""

from __future__ import annotations


class EmulationError(Exception):
    """The program did what it must not, or something that is not known here. `where`: line and text of the instruction,
    filled in by the launch.
    """

    where: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.args[0]}" if self.where else str(self.args[0])


class Unsupported(EmulationError):
    """An instruction, an operand or a mode that is not modelled."""
