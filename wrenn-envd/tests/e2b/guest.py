"""What the tests share: connecting, waiting, comparing."""

import json
import os
import time
import urllib.error
import urllib.request

from e2b import AsyncSandbox, ConnectionConfig, Sandbox
from packaging.version import Version

URL = "http://localhost:49983"
PATIENCE = float(os.environ.get("WRENN_SUITE_PATIENCE", "1"))
LONG = 300 * PATIENCE


class Skip(Exception):
    """The guest can't run this test; the text says why."""


def first_token():
    return os.environ.get("WRENN_SUITE_TOKEN") or None


def options(token):
    headers = {"X-Access-Token": token} if token else {}
    return {
        "sandbox_id": "debug",
        "sandbox_domain": None,
        "envd_version": Version("99.99.99"),
        "envd_access_token": token,
        "traffic_access_token": None,
        "connection_config": ConnectionConfig(
            extra_sandbox_headers=headers, debug=True, request_timeout=LONG
        ),
    }


def connect(token=None):
    return Sandbox(**options(token or first_token()))


async def connect_async(token=None):
    return AsyncSandbox(**options(token or first_token()))


def until(condition, what, patience=120 * PATIENCE):
    """Polls a condition; its value once it holds."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


def raises(kind, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"did not raise {kind.__name__}")


def http(method, path, body=None, headers=None, url=None):
    """A plain request: status, headers, body."""
    request = urllib.request.Request(
        url or URL + path, data=body, headers=headers or {}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=LONG) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def init(body, token=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["X-Access-Token"] = token
    return http("POST", "/init", json.dumps(body).encode(), headers)[0]


def is_root(box):
    return box.commands.run("id -u", timeout=LONG).stdout.strip() == "0"


def can_switch(box):
    """Whether the daemon may act as another user."""
    try:
        return box.commands.run("id -u", user="root", timeout=LONG).stdout.strip() == "0"
    except Exception:
        return False
