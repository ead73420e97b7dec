"""The one exception a user sees. The command line prints it without a stack trace and exits with code 2."""


class UserError(ValueError):
    """Something the user gave cannot work.

    The text names the setting, its value, the rule that it breaks and the fix. Raise it before the first collective,
    from facts that are the same on every rank.
    """

    def __init__(self, what: str, *, rule: str, fix: str) -> None:
        super().__init__(f"{what}\n  rule: {rule}\n  fix:  {fix}")
