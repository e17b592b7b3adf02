"""A gateway for text messages that takes them all and keeps them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from neighbours.waiting import wait_for


class SmsGateway:
    """Listens on a free port of 127.0.0.1; messages go to `url`."""

    def __init__(self):
        self._taken = []
        taken = self._taken

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                taken.append(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/send"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def settings(self):
        """The table `[sms]` that leads here."""
        body = '{"to": "{{ to }}", "text": "{{ text }}", "code": "{{ code }}"}'
        return {"transport": "http", "http": {"url": self.url, "body": body}}

    def to(self, number):
        """All messages to `number` ("+447700900001") so far, each with `text` and `code`."""
        return [message for message in self._taken if message["to"] == number]

    def wait_for(self, number, count=1):
        """The message number `count` to `number`, waiting for it."""
        return wait_for(f"message {count} to {number}", lambda: self.to(number)[count - 1 : count])[0]

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
