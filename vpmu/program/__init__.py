"""Programs: what guests execute, from a recorded profile, a program file, or the scenario.

`vpmu.program.model` owns the program itself and its file; `callgrind` reads Callgrind's format, `penalties`
estimates what Callgrind cannot know, `context` and `importer` turn the profile into phases and segments.
"""

from vpmu.program.importer import import_callgrind
from vpmu.program.model import EVENT_KINDS, Program, ProgramError
from vpmu.program.storage import load_program, save_program

__all__ = ["EVENT_KINDS", "Program", "ProgramError", "import_callgrind", "load_program", "save_program"]
