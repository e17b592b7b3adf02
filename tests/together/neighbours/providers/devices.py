"""What all push services have in common: they take pushes for devices, and some devices are in trouble."""

from ..waiting import wait_for
from .service import Service


class Devices(Service):
    """A push service. A subclass reads a request into a push that has a `device`, and says what its answers are."""

    def __init__(self, background, ca):
        self._taken = []
        self._seen = []
        self._trouble = {}
        super().__init__(background, ca)

    def read(self, request):
        """The push of a request, after everything about it was checked."""
        raise NotImplementedError

    def success(self, push):
        raise NotImplementedError

    def gone(self):
        """The answer for a device that has uninstalled the app."""
        raise NotImplementedError

    def away(self):
        """The answer of a service that is overloaded."""
        raise NotImplementedError

    def answer(self, request):
        push = self.read(request)
        with self._lock:
            self._seen.append(push.device)
            trouble = self._trouble.get(push.device)
            if trouble is None:
                self._taken.append(push)
        return self.success(push) if trouble is None else trouble

    def set_trouble(self, device, answer):
        """Answers all pushes to a device with `answer`; None ends that."""
        with self._lock:
            self._trouble[device] = answer

    def pushes_to(self, device):
        """The pushes to a device that were taken, in order."""
        with self._lock:
            return [push for push in self._taken if push.device == device]

    def tries(self, device):
        """How many requests there were for a device, whatever was answered."""
        with self._lock:
            return self._seen.count(device)

    def wait_for(self, device, count):
        """The first `count` pushes that a device got, waiting for them; fails if there are more already."""
        what = f"{count} pushes by {type(self).__name__}"
        pushes = wait_for(what, lambda: len(self.pushes_to(device)) >= count and self.pushes_to(device))
        assert len(pushes) == count, pushes
        return pushes
