"""What the user can mend."""

from __future__ import annotations

import difflib
import errno
import itertools
import reprlib
from collections.abc import Iterable

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors of the operating system: the disk is full


LONGEST = 400  # characters of a message


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text; where it is longer, with its middle left out."""
    return text if len(text) <= longest else f"{text[: longest - 104]} ... {text[-99:]}"


class InputError(Exception):
    """Bad input, told in one line: ``WHERE: what is wrong; the mend``. The command line prints it and exits with 2.

    Names and values in it come from data: a message of more than ``LONGEST`` characters loses its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(" ".join(message.splitlines())))


def reason(error: BaseException) -> str:
    """What an error of foreign code says, as one line of bearable length."""
    return shortened(" ".join(str(error).split()), 200) or type(error).__name__


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 6
_SHORT.maxstring = _SHORT.maxother = 60


def abridged(value: object) -> str:
    """A value from data for an error message: at most 60 characters, and never built longer on the way.

    Twenty lines of YAML can stand for a list of 10^30 words, whose ``repr`` would take all memory.
    """
    try:
        text = _SHORT.repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = f"a number of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def shortlist(names: Iterable[object], longest: int = 200) -> str:
    """Names for an error message, commas between; those beyond some characters are counted: ``a, b and 45 more``."""
    words = [str(name) for name in names]
    ends = list(itertools.accumulate(len(word) + 2 for word in words))
    shown = max(1, sum(end <= longest for end in ends))
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), 1) if len(word) <= 100 else []  # it takes the square
    return f"; did you mean {close[0]!r}?" if close else ""
