"""One event loop in a thread, for everything that this process serves itself."""

import asyncio
import threading


class Background:
    """Runs coroutines for tests that are plain functions."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    def run(self, coroutine, patience=30.0):
        """Runs `coroutine` to its end and returns its result; at the most `patience` seconds."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(patience)

    def stop(self):
        async def end():
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
