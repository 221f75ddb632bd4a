"""The one exception that a reader of the notebooks may meet.

A wrong parameter file, a missing image or an empty codebook is not a fault of the program, and a
page of traceback hides the one sentence that helps. Whatever the reader can put right is raised as
`RedlibError`, with a message of one line that names the field or file, quotes what was found and
says what to do:

    raise RedlibError(f"keep must be from 1 to {size}; got {keep!r}")

The command line prints that line on stderr and exits with code 2. A notebook shows the same line
and nothing else, because IPython asks an exception how it wants to be drawn.
"""


def first_line(error: BaseException) -> str:
    """What an error of another library says first, for a message of one line."""
    told = str(error).strip().partition("\n")[0].rstrip(". ")
    return told or type(error).__name__


class RedlibError(Exception):
    """A mistake in the input that one line can explain."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows instead of a traceback."""
        return [f"redlib: {self}"]
