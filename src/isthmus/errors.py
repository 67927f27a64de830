"""The few kinds of error a user can cause. Each message says what, where and how to mend it, in one line."""


class IsthmusError(Exception):
    """A mistake in what was asked or given; the command prints it as one line and exits with code 2."""


class BadInput(IsthmusError):
    """A file, column, tensor or option that cannot be used."""


class BadBudget(IsthmusError):
    """A budget that cannot be read."""


class UnreachableBudget(IsthmusError):
    """A budget that no plan meets; the message names the nearest one that can be met."""


class UnsupportedNetwork(IsthmusError):
    """A network whose anatomy is not known."""


class BadArtifact(IsthmusError):
    """An artifact that is truncated, tampered with or from another version."""
