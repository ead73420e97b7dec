"""The one exception a user sees. The command line prints it without a stack trace and exits with code 2."""

from functools import partial


class UserError(ValueError):
    """Something the user gave cannot work.

    The text names the setting, its value, the rule that it breaks and the fix. Raise it before the first collective,
    from facts that are the same on every rank.
    """

    def __init__(self, what: str, *, rule: str, fix: str) -> None:
        super().__init__(f"{what}\n  rule: {rule}\n  fix:  {fix}")
        self.what, self.rule, self.fix = what, rule, fix

    def __reduce__(self) -> "tuple[partial[UserError], tuple[str]]":
        """Survives the way between processes (keyword arguments do not, by default)."""
        return partial(type(self), rule=self.rule, fix=self.fix), (self.what,)


class StorageError(UserError):
    """A disk or a network failed: no mistake, and tried again where a job can be. Exit code 1."""


class TrainingError(RuntimeError):
    """The run cannot go on, through no mistake in its settings; raised on all ranks at the same step. Exit code 1."""
