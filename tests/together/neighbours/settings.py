"""Writes configurations as TOML."""

import copy
import json


def _value(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    # A basic string of TOML has the escapes of JSON.
    return json.dumps(str(value))


def toml(settings):
    """A configuration of two levels or more, as text. Values may be paths."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in settings.items())


def merged(settings, changes):
    """`settings` with `changes` on top, table by table; neither is changed."""
    result = copy.deepcopy(settings)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result
