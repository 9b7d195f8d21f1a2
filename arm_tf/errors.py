"""What a user can mend; the programs tell it in one line."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line: which, what was given, what may."""


class DataError(ValueError):
    """Data that cannot be used; one line: what was wrong, what was found, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class RunError(RuntimeError):
    """A run that cannot start or go on; the message is one line: what is wrong, what to do."""
