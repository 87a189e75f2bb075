"""The access token, signed URLs and what `/init` sets.

The daemon gets a token for the time of a test, unless it has one already.
"""

import contextlib
import json
import time

from e2b import AuthenticationException
from guest import LONG, URL, connect, first_token, http, init, raises


@contextlib.contextmanager
def token():
    """A token that the daemon has for now."""
    if first_token():
        yield first_token()
        return
    value = "suite-token"
    assert init({"accessToken": value}) == 204
    try:
        yield value
    finally:
        assert init({"accessToken": ""}, value) == 204


RPCS = [
    *(f"/process.Process/{name}" for name in (
        "List", "Connect", "Start", "Update", "StreamInput", "SendInput", "SendSignal",
        "CloseStdin")),
    *(f"/filesystem.Filesystem/{name}" for name in (
        "Stat", "MakeDir", "Move", "ListDir", "Remove", "WatchDir", "CreateWatcher",
        "GetWatcherEvents", "RemoveWatcher")),
]


def test_every_route_but_health_wants_the_token():
    with token():
        assert http("GET", "/health")[0] == 204
        routes = [("POST", rpc) for rpc in RPCS] + [
            ("GET", "/envs"), ("GET", "/metrics"), ("GET", "/files?path=/etc/passwd"),
            ("POST", "/files?path=/tmp/x"), ("POST", "/files/compose"), ("POST", "/init"),
            ("GET", "/nowhere"), ("DELETE", "/files"),
        ]
        for method, path in routes:
            for headers in ({}, {"X-Access-Token": "wrong"}):
                body = b"{}" if method == "POST" else None
                status, _, answer = http(
                    method, path, body, {"Content-Type": "application/json", **headers}
                )
                assert status == 401, (method, path, headers, status)
                assert json.loads(answer)["code"] in (401, "unauthenticated")


def test_the_token_opens(box):
    with token() as value:
        with_token = connect(value)
        assert with_token.commands.run("echo in", timeout=LONG).stdout == "in\n"
        if not first_token():
            raises(AuthenticationException, box.commands.list)
            raises(AuthenticationException, box.files.read, "/etc/passwd")


def test_init_needs_the_present_token():
    with token() as value:
        assert init({"accessToken": "stolen"}) == 401
        assert init({"accessToken": "stolen"}, "wrong") == 401
        assert init({}, value) == 204


def test_signed_download(box, scratch):
    box.files.write(f"{scratch}/s ecret+&", "signed contents")
    with token() as value:
        signed = connect(value)
        url = signed.download_url(f"{scratch}/s ecret+&")
        assert url.startswith(URL)
        assert http("GET", None, url=url)[::2] == (200, b"signed contents")
        url = signed.download_url(f"{scratch}/s ecret+&", use_signature_expiration=3600)
        assert http("GET", None, url=url)[0] == 200
        assert http("POST", None, b"", {"Content-Type": "application/octet-stream"}, url)[0] == 401
        other = url.replace("ecret", "omething")
        assert http("GET", None, url=other)[0] == 401
        unsigned = URL + "/files?path=/etc/passwd"
        status, _, answer = http("GET", None, url=unsigned)
        assert status == 401 and json.loads(answer)["message"] == "missing signature query parameter"


def test_expired_signature(box, scratch):
    box.files.write(f"{scratch}/file", "x")
    with token() as value:
        url = connect(value).download_url(f"{scratch}/file", use_signature_expiration=-100)
        status, _, answer = http("GET", None, url=url)
        assert status == 401
        assert json.loads(answer) == {"code": 401, "message": "signature is already expired"}


def test_signed_upload(box, scratch):
    with token() as value:
        url = connect(value).upload_url(f"{scratch}/up")
        boundary = "x1y2"
        form = (
            f"--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"any\"\r\n"
            f"\r\nuploaded\r\n--{boundary}--\r\n"
        ).encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        status, _, answer = http("POST", None, form, headers, url)
        assert status == 200, answer
        assert json.loads(answer)[0]["path"] == f"{scratch}/up"
    assert box.files.read(f"{scratch}/up") == "uploaded"


def test_init_sets_variables(box):
    headers = {"X-Access-Token": first_token()} if first_token() else {}
    old = json.loads(http("GET", "/envs", headers=headers)[2])
    assert init({"envVars": {**old, "SUITE": "given"}}, first_token()) == 204
    try:
        assert box.commands.run("echo $SUITE", timeout=LONG).stdout == "given\n"
        assert box.commands.run(
            "echo $SUITE", envs={"SUITE": "own"}, timeout=LONG
        ).stdout == "own\n"
        assert json.loads(http("GET", "/envs", headers=headers)[2])["SUITE"] == "given"
    finally:
        assert init({"envVars": old}, first_token()) == 204


def test_init_refuses_nonsense():
    assert init({"timestamp": "soon"}, first_token()) == 400
    assert init({"entropy": "%"}, first_token()) == 400
    assert init({"defaultUser": "no-such-user"}, first_token()) == 400
    headers = {"X-Access-Token": first_token()} if first_token() else {}
    assert http("POST", "/init", b"{", headers)[0] == 400
    assert http("POST", "/init", b"", headers)[0] == 204


def test_metrics():
    headers = {"X-Access-Token": first_token()} if first_token() else {}
    metrics = json.loads(http("GET", "/metrics", headers=headers)[2])
    assert metrics["cpu_count"] >= 1 and metrics["mem_total"] > metrics["mem_used"] > 0
    assert metrics["disk_total"] > 0 and abs(metrics["ts"] - time.time()) < 24 * 3600


def test_is_running(box):
    assert box.is_running()
