"""What can go wrong with an appliance that is asked from elsewhere."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import StrongroomError


class RemoteRefused(StrongroomError):
    """What the other appliance says, in its words. `status` is that of HTTP."""

    def __init__(self, sentence: str, hint: str, status: int, kind: str) -> None:
        super().__init__(sentence, hint=hint, status=status, kind=kind)


class RemoteUnreachable(StrongroomError):
    retryable = True

    def __init__(self, url: str, reason: str, hint: str = "") -> None:
        super().__init__(f"the appliance at {url} does not answer: {reason}", hint=hint, url=url)


class RemoteUntrusted(StrongroomError):
    """It speaks no TLS, or its certificate is not trusted."""

    def __init__(self, url: str, reason: str, hint: str) -> None:
        super().__init__(f"the appliance at {url} is not spoken to: {reason}", hint=hint, url=url)


class RemoteUnknown(StrongroomError):
    """Something answered that is no appliance of a version that this program knows."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"what answers at {url} is not understood: {reason}",
            hint="Give the address of the console, as https://backup.example.org:8443; an older or newer appliance may"
            " want another version of this program.",
            url=url,
        )


class AddressUnfit(StrongroomError):
    exit_code = 2

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"{url!r} is no address of an appliance: {why}", hint="Such as https://backup.example.org:8443."
        )


class AuthoritiesUnusable(StrongroomError):
    exit_code = 2

    def __init__(self, file: Path | None, why: str) -> None:
        super().__init__(
            f"{file or 'what this system trusts'}: {why}",
            hint="--ca-file is a file of certificates in PEM, such as a copy of keys/web.crt from the other's home.",
        )


class TokenMissing(StrongroomError):
    exit_code = 2

    def __init__(self, why: str) -> None:
        super().__init__(
            f"there is no token to show the other appliance: {why}",
            hint="'strongroom token add' there makes one. Put it into STRONGROOM_TOKEN, or into a file that only you"
            " can read, and name that with --token-file.",
        )


class OnlyHere(StrongroomError):
    """The command needs what is on the appliance's own machine."""

    exit_code = 2

    def __init__(self, command: str) -> None:
        if command.endswith((" backup", " restore")):
            super().__init__(
                f"with --url, '{command}' asks for a run and does not do it itself",
                hint="Add --queue: a worker of that appliance does it, and 'run show' tells how far it is.",
            )
            return
        super().__init__(
            f"'{command}' works on the appliance's own machine only, and not with --url",
            hint="Give it there. With --url go: run, backup --queue, restore --queue, vm list, point list |"
            " protect | delete, files list | get, recovery start | list | migrate | discard, policy add | edit |"
            " remove | list | show | preview | pause | resume, plan, report, status.",
        )


class MigrationEnded(StrongroomError):
    def __init__(self, id: str, state: str, error: str | None) -> None:
        super().__init__(
            f"recovery {id[:12]} is {state} again" + (f": {error}" if error else ""), hint="See 'recovery list'.", id=id
        )
