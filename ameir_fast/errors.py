"""The one exception that means "the input is wrong", as opposed to "the program is"."""


class InputError(ValueError):
    """Bad input from a user: the message names the offending thing in one line.

    The command line prints it as ``error: <message>`` and exits with code 2. It is a ``ValueError``
    so that callers of the Python API can catch it without importing this module.
    """
