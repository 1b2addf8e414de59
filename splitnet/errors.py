"""What a person got wrong, as opposed to what the program got wrong."""


class UsageError(ValueError):
    """Bad input. The message is one line: the option, the value, and what would be right.

    Commands print it as `splitnet: error: …` and exit with 2; nothing else is caught.
    """
