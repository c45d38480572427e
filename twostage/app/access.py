"""Access control: requests must name this server, come from its own page, and contain its token if it has one."""

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from twostage.app.security import App, Message, Receive, Send, discard, header, refuse

OPEN = ("/v1/health",)  # answered without a token
PATIENCE = 1 << 20, 2.0  # bytes of a refused request that are read before the response, and seconds without any
ASK = """<!doctype html><meta charset="utf-8"><title>twostage</title>
<form style="font: 1em system-ui; margin: 20vh auto; width: 20em"><label>Token, as `twostage` printed it:<br>
<input name="token" type="password" autofocus style="width: 100%"></label> <button>Enter</button></form>"""


@dataclass(frozen=True)
class Access:
    """The served ``host``, further host names that are ``allowed``, and a ``token`` or none.

    Browsers send the host name in the address, so a foreign name that resolves to this machine is recognized.
    """

    host: str
    allowed: tuple[str, ...] = ()
    token: str = ""

    def names(self, host: str) -> bool:
        """Whether ``host``, with a port or without, is this server.

        >>> Access("127.0.0.1").names("localhost:7860"), Access("127.0.0.1").names("evil.example")
        (True, False)
        """
        name = _name_of(host)
        if name in {"localhost", _name_of(self.host), *map(_name_of, self.allowed)}:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self.host)  # behind a forwarded port, any address is possible

    def is_own(self, origin: str, host: str) -> bool:
        """Whether a page at ``origin`` belongs to this server, which was addressed as ``host``."""
        own_name = urlsplit(origin).netloc.lower()
        return bool(own_name) and (own_name == host.lower() or _name_of(own_name) in map(_name_of, self.allowed))

    def is_known(self, token: str) -> bool:
        return not self.token or hmac.compare_digest(token.encode(), self.token.encode())


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(_name_of(host)).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _name_of(host: str) -> str:
    """The host name without port and brackets.

    >>> _name_of("[::1]:80"), _name_of("LOCALHOST:80"), _name_of("::1")
    ('::1', 'localhost', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return (host if host.count(":") > 1 else host.partition(":")[0]).lower()


class Door:
    """ASGI: admits the requests that ``access`` allows. The token is in a header, a cookie, or once in the address."""

    def __init__(self, app: App, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        if refusal := self._foreign(header(scope, b"host"), header(scope, b"origin")):
            await discard(receive, *PATIENCE)
            return await refuse(scope, send, *refusal)
        if scope["path"] in OPEN or self._access.is_known(self._token(scope)):
            return await self._app(scope, receive, send)
        query_token, other_parameters = _token_in_query(scope)
        if scope["method"] == "GET" and query_token and self._access.is_known(query_token):
            return await self._remember(scope, other_parameters, send)
        await discard(receive, *PATIENCE)
        await self._ask(scope, send)

    def _foreign(self, host: str, origin: str) -> tuple[int, str] | None:
        """Status and text of a refusal, if a request names another server or comes from its page."""
        if not self._access.names(host):
            return 421, f"Host {host!r} is not this server; --allow-host permits this name."
        if origin and not self._access.is_own(origin, host):
            return 403, f"Origin {origin!r} is not a page of this server."
        return None

    def _token(self, scope: Message) -> str:
        scheme, _, token = header(scope, b"authorization").partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(header(scope, b"cookie"))
        except CookieError:
            return ""
        name = _cookie_name(scope)
        return cookies[name].value if name in cookies else ""

    async def _remember(self, scope: Message, parameters: Iterable[tuple[str, str]], send: Send) -> None:
        """Redirect to the same address without the token, and store it in a cookie."""
        query = urlencode(list(parameters))
        location = quote("/" + scope["path"].lstrip("/")) + (f"?{query}" if query else "")  # "//x": another host
        cookie = f"{_cookie_name(scope)}={self._access.token}; Path=/; HttpOnly; SameSite=Lax"
        headers = [(b"location", location.encode()), (b"set-cookie", cookie.encode())]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _ask(self, scope: Message, send: Send) -> None:
        if scope["method"] == "GET" and "text/html" in header(scope, b"accept"):
            return await refuse(scope, send, 401, ASK, kind="text/html; charset=utf-8")
        hint = "A token is needed: send `Authorization: Bearer TOKEN`, the one that was printed at the start."
        await refuse(scope, send, 401, hint, headers=[(b"www-authenticate", b"Bearer")])


def _cookie_name(scope: Message) -> str:
    """The name of the cookie; it contains the port, because cookies of a host are shared by all of its ports."""
    server = scope.get("server") or ("", 0)
    return f"twostage-{server[1]}"


def _token_in_query(scope: Message) -> tuple[str, list[tuple[str, str]]]:
    pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    return dict(pairs).get("token", ""), [pair for pair in pairs if pair[0] != "token"]
