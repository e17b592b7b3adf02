"""Databases of our own in the throwaway PostgreSQL that `tests/run` starts."""

import os
import secrets

import psycopg
from urllib.parse import urlsplit, urlunsplit

VARIABLE = "WAYPOST_TEST_POSTGRES_URL"


class Databases:
    """Makes databases, and drops them at the end."""

    def __init__(self):
        self._admin = os.environ.get(VARIABLE)
        if not self._admin:
            raise RuntimeError(f"{VARIABLE} is not set; tests/run starts a PostgreSQL and sets it")
        self._names = []

    def fresh_url(self):
        """The URL of a new, empty database."""
        name = f"together_{secrets.token_hex(6)}"
        self._execute(f'CREATE DATABASE "{name}"')
        self._names.append(name)
        return urlunsplit(urlsplit(self._admin)._replace(path=f"/{name}"))

    def drop_all(self):
        for name in self._names:
            self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._names.clear()

    def _execute(self, statement):
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute(statement)
