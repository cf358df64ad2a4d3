"""Errors that say who is to mend them; the worker reads that off their attribute."""


class WrongArgument(Exception):
    """An argument that its schema allows and that will not do: its caller is to change it."""

    def __init__(self, argument: str, why: str) -> None:
        super().__init__(why)
        self.aios_says = {"argument": argument}


class NoRule(Exception):
    """What no rule of the operator's lets it do; `rule` is the one to write."""

    def __init__(self, argument: str, why: str, rule: str) -> None:
        super().__init__(why)
        self.aios_says = {"argument": argument, "rule": rule}


class TooLong(BaseException):
    """It has taken longer than it may; no handler of `Exception` on the way keeps it back."""

    def __init__(self, argument: str, why: str) -> None:
        super().__init__(why)
        self.aios_says = {"argument": argument}
