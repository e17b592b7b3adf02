"""What the tests of this folder need around Waypost: real programs, and the few stand-ins for what cannot run here.

Everything listens on loopback. Programs are started in folders of their own and killed at the end; whatever waits has a
deadline, and says what it waited for.
"""
