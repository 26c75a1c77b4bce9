"""Errors that a user of the project can act on."""


class InputError(ValueError):
    """A setting, file or data item breaks a rule.

    The message names the argument or file, the rule, the value received and what to do. The command line
    prints it on one line without a traceback.
    """


class DiskFullError(InputError, OSError):
    """There is no room for a file. What stood under its name before is still there."""
