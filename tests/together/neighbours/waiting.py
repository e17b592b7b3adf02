"""Waiting with a deadline, and saying what was awaited."""

import time

# Seconds. Programs start on a machine that may be busy with other tests; nothing here takes as long when it works.
PATIENCE = 60.0


def wait_for(what, ask, patience=PATIENCE, every=0.1):
    """Asks until the answer is truthy, and returns it.

    `what` completes the sentence "waited for ...". Fails after `patience` seconds with that sentence and the last
    answer; the report of a failed test has the ends of all programs' logs.
    """
    deadline = time.monotonic() + patience
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:g} s in vain for {what}; the last answer was {answer!r}")
        time.sleep(every)
