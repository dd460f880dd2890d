"""Defines the errors that a program reports without a traceback. This module imports nothing from the project."""


class UserError(Exception):
    """An error that the user can fix: in the configuration, the data, the environment or the command line.

    Programs print the message and exit with status 2.
    """


class ConfigError(UserError):
    """An error in a configuration file or in an override."""


class RendezvousError(UserError):
    """The ranks of a launch cannot find each other.

    Each rank prints its own message, because rank 0 cannot speak for ranks that it does not know.
    """


class RankFailedError(Exception):
    """Raised on the other ranks when one rank fails with an unexpected exception.

    The message names the failed rank and its exception. The output of that rank has the traceback.
    """


class LostRankError(RankFailedError):
    """Raised if another rank has died or has not responded in time. The message begins with the number of this rank."""
