"""What can go wrong with accounts; nothing says more than who asks may know."""

from __future__ import annotations

import math

from appliance.errors import StrongroomError


class AccountError(StrongroomError):
    pass


class SignInRefused(AccountError):
    """The same whatever of it was wrong."""

    def __init__(self) -> None:
        super().__init__(
            "the name, the password or the code is wrong",
            hint="A code counts once: wait for the next one, or give a recovery code. An admin can make a new set-up"
            " link: strongroom user reset NAME.",
        )


class Throttled(AccountError):
    """`retry_after_s`: whole seconds."""

    retryable = True

    def __init__(self, what: str, wait_s: float, hint: str) -> None:
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(f"{what}: wait {self.retry_after_s} s", hint=hint, retry_after_s=self.retry_after_s)


class SignInThrottled(Throttled):
    def __init__(self, wait_s: float) -> None:
        super().__init__(
            "there were too many failed sign-ins",
            wait_s,
            hint="On the appliance's machine, 'strongroom user reset NAME' makes a link that waits for nothing.",
        )


class SessionOver(AccountError):
    def __init__(self) -> None:
        super().__init__("nobody is signed in", hint="Sign in.")


class TokenRefused(AccountError):
    def __init__(self, why: str = "it is not known") -> None:
        super().__init__(
            f"the API token is refused: {why}", hint="'strongroom token list' shows them, and 'token add' makes one."
        )


class LinkUnusable(AccountError):
    def __init__(self) -> None:
        super().__init__(
            "this link cannot be used: it was used, it is too old, or a newer one took its place",
            hint="On the appliance's machine, 'strongroom user setup-link' makes a new one.",
        )


class UsersExist(AccountError):
    def __init__(self) -> None:
        super().__init__(
            "there are users already, so there is no first set-up",
            hint="'strongroom user add' adds one; 'strongroom user reset NAME' makes a new link for one.",
        )


class PasswordUnfit(AccountError):
    exit_code = 2

    def __init__(self, why: str) -> None:
        super().__init__(f"the password cannot be used: {why}", hint="Several words in a row make a good one.")


class NameUnfit(AccountError):
    exit_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} cannot be the name of a user",
            hint="Up to 64 lower-case letters, digits, and . _ @ - between them, such as alice or alice@example.org.",
        )


class CodeWrong(AccountError):
    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            "the code is wrong",
            hint="Give the six digits that the app shows now. If they stay wrong, a clock is off: the phone's, or this"
            " appliance's.",
        )


class GrantsMissing(AccountError):
    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            "a restorer has to be granted machines", hint='For every one: --grant \'{"include": [{"all": true}]}\'.'
        )


class TokenUnfit(AccountError):
    exit_code = 2

    def __init__(self, why: str) -> None:
        super().__init__(f"there can be no such token: {why}", hint="'strongroom token add --help' tells more.")
