"""The one kind of error that is no bug."""


class UserError(ValueError):
    """What the user can put right; the message names the value and what was expected. Any other error is a bug."""
