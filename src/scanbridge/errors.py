"""The one exception that a user ever sees."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend: bad input, a bad setting, a file that does not fit.

    Parameters
    ----------
    what
        What is wrong and where: the file, the key or the subject, with the offending value.
    expected
        What should have stood there.
    remedy
        What to do about it, as a command or a setting where there is one.
    """

    def __init__(self, what: str, expected: str = "", remedy: str = "") -> None:
        self.what, self.expected, self.remedy = what, expected, remedy
        parts = [what, f"expected {expected}" if expected else "", remedy]
        super().__init__("; ".join(part for part in parts if part))


def nearest(name: str, choices: Iterable[str]) -> str:
    """Give ``"did you mean 'x'?"`` for the closest of `choices`, or the list of them where none is close.

    >>> nearest("t1", ["t1w", "flair"])
    "did you mean 't1w'?"
    >>> nearest("zzz", ["t1w", "flair"])
    'one of: flair, t1w'
    """
    known = sorted(set(choices))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"one of: {', '.join(known)}" if known else "nothing is defined here"
