"""An HTTP service over TLS that records what it is asked, served by hypercorn (HTTP/1.1 and HTTP/2)."""

import asyncio
import dataclasses
import json
import socket
import threading
import traceback

from hypercorn.asyncio import serve
from hypercorn.config import Config


@dataclasses.dataclass
class Request:
    """A request: `version` is "1.1" or "2"; the names of `headers` are in lower case."""

    method: str
    path: str
    query: str
    version: str
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclasses.dataclass
class Answer:
    """What is answered; `body` becomes JSON unless it is None."""

    status: int
    body: object = None
    headers: dict = dataclasses.field(default_factory=dict)


class Service:
    """Listens with TLS on a free port of 127.0.0.1, which it keeps while it is stopped and started again.

    A subclass answers in `answer(request)`. An assertion that fails there is kept in `mistakes` and answered 500: the
    caller did what a real service would not take.
    """

    def __init__(self, background, ca):
        self._background, self._ca = background, ca
        self._lock = threading.Lock()
        self._reserved = None
        self.mistakes = []
        self.port = 0
        self.start()
        self.url = f"https://localhost:{self.port}"

    def answer(self, request):
        """The `Answer` to a `Request`; it runs in the thread of the servers."""
        raise NotImplementedError

    def start(self):
        """Listens, on the port that it had before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.certfile, config.keyfile = str(self._ca.certificate), str(self._ca.key)
        config.alpn_protocols = ["h2", "http/1.1"]
        config.graceful_timeout = 0.2
        config.accesslog = config.errorlog = None
        self._stopping = asyncio.Event()
        self._served = asyncio.run_coroutine_threadsafe(
            serve(self._application, config, shutdown_trigger=self._stopping.wait), self._background.loop
        )

    def stop(self):
        """Closes all connections, and refuses new ones until `start`."""
        self._background.loop.call_soon_threadsafe(self._stopping.set)
        self._served.result(30)

    async def _application(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
                if event == "lifespan.shutdown":
                    return
        body = b""
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        request = Request(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode(),
            version=scope["http_version"],
            headers={name.decode().lower(): value.decode() for name, value in scope["headers"]},
            body=body,
        )
        try:
            answer = self.answer(request)
        except Exception:
            with self._lock:
                self.mistakes.append(f"{request}\n{traceback.format_exc()}")
            answer = Answer(500)
        payload = b"" if answer.body is None else json.dumps(answer.body).encode()
        headers = {"content-length": str(len(payload)), **answer.headers}
        if payload:
            headers["content-type"] = "application/json"
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": payload})
