"""What the user can mend."""


class InputError(Exception):
    """Bad input, told in one line: ``WHERE: what is wrong; the mend``. The command line prints it and exits with 2."""
