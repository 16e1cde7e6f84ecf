"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something outside mmjax is wrong: a file, a key, a disk, a config that does not fit.

    The message names the thing and the remedy in one line; the command line prints it without a
    traceback and exits with a non-zero code.
    """
