"""Functional emulation of AMD machine code (CDNA2 to CDNA4: gfx90a, gfx942, gfx950; RDNA3 and RDNA4: gfx1100, gfx1200,
gfx1201) on a CPU: assembly text in, memory changed. Needs NumPy, and Triton where kernels are to be compiled.

What it proves and what not: docs/emulator.md.
"""

from .errors import EmulationError as EmulationError
from .errors import Unsupported as Unsupported
from .instructions import coverage as coverage
from .kernel import Ran as Ran
from .kernel import run_kernel as run_kernel
from .launch import Counts as Counts
from .launch import Machine as Machine
from .launch import Pointer as Pointer
from .memory import Memory as Memory
from .mix import class_of as class_of
from .parse import Program as Program
from .parse import instruction as instruction
from .parse import parse as parse
from .profile import Profile as Profile
from .resources import Resources as Resources
from .resources import resources as resources
