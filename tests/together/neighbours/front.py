"""A reverse proxy with TLS, as operators put before a server that speaks plain HTTP. It passes bytes on unchanged."""

import asyncio
import itertools


class TlsFront:
    """Listens with TLS on a free port of 127.0.0.1; `name` is how others call it: `localhost:PORT`.

    Each connection goes to the next of `upstreams`, which are (host, port); without any it is closed.
    """

    def __init__(self, background, ca):
        self._background = background
        self._turn = itertools.count()
        self._connections = set()
        self.upstreams = []
        # How many of the next answers are lost: the connection ends in their place.
        self.lose_answers = 0
        self._server = background.run(self._listen(ca.server_context()))
        self.port = self._server.sockets[0].getsockname()[1]
        self.name = f"localhost:{self.port}"
        self.url = f"https://{self.name}"

    async def _listen(self, context):
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)

    async def _serve(self, reader, writer):
        self._connections.add(asyncio.current_task())
        try:
            if self.upstreams:
                host, port = self.upstreams[next(self._turn) % len(self.upstreams)]
                upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
                # Once one side has ended there is nothing more to answer.
                both = [
                    asyncio.ensure_future(self._copy(reader, upstream_writer)),
                    asyncio.ensure_future(self._copy_answers(upstream_reader, writer)),
                ]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in both:
                        task.cancel()
                    upstream_writer.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._connections.discard(asyncio.current_task())

    @staticmethod
    async def _copy(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass

    async def _copy_answers(self, reader, writer):
        first = await reader.read(65536)
        if first and self.lose_answers:
            self.lose_answers -= 1
            return
        writer.write(first)
        await self._copy(reader, writer)

    def drop_connections(self):
        """Closes all connections that are open."""

        async def drop():
            for task in list(self._connections):
                task.cancel()

        self._background.run(drop())

    def close(self):
        async def end():
            self._server.close()

        self._background.run(end())
        self.drop_connections()
