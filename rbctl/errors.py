"""What the user can mend."""


class InputError(Exception):
    """Bad input, told in one line: ``WHERE: what is wrong; the mend``. The command line prints it and exits with 2."""


def reason(error: Exception) -> str:
    """What an error of foreign code says, as one line of bearable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
