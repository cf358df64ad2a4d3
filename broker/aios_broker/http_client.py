"""httpx's client, to which a connection that is lost as soon as it is made is an error of httpx."""

from typing import Any

import httpx

_ASKED_OF_A_SOCKET = "getpeername"


class HttpClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` whose callers need to know httpx's own errors alone.

    Below httpx, anyio (4.16) asks each new connection's socket for the address of its other end.
    When that end is gone by then, uvloop's transport has no socket any more, and an AttributeError
    comes up: a server that is killed while others connect to it would be a fault of ours.
    """

    async def send(
        self,
        request: httpx.Request,
        **options: Any,  # noqa: ANN401  they are httpx's
    ) -> httpx.Response:
        """Send a request, as httpx does.

        Raises:
            httpx.ConnectError: also where the other end closed before the request was sent.
        """
        try:
            return await super().send(request, **options)
        except AttributeError as error:
            if error.name != _ASKED_OF_A_SOCKET:
                raise
            raise httpx.ConnectError(
                "the connection was closed as soon as it was made", request=request
            ) from error
