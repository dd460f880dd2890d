"""Errors that a program reports without a traceback. This module imports nothing of the project."""


class UserError(Exception):
    """A user's mistake in configuration, data, environment or command line.

    Programs print the message and exit with status 2.
    """


class ConfigError(UserError):
    """An error in a configuration file or in an override."""


class RankFailedError(Exception):
    """Another rank failed with an unexpected exception.

    The message names the rank and the exception. The output of that rank has the traceback.
    """
