"""What schemathesis has to know of the API beyond its description."""

import schemathesis


@schemathesis.serializer("application/x-tar", "application/octet-stream")
def binary(context, value):
    """Sends a body as it is."""
    if isinstance(value, bytes):
        return value
    return str(value).encode()


@schemathesis.deserializer("application/x-tar", "application/octet-stream")
def opened(context, response):
    """Reads a body as what its schema says: text of any bytes."""
    return response.content.decode("latin-1")


@schemathesis.hook
def map_body(context, body):
    """Each child of a fork is a process: few of them say as much as many."""
    if context.operation.path.endswith("/fork") and isinstance(body, dict):
        count = body.get("count")
        if isinstance(count, int) and 2 < count <= 64:
            body["count"] = 2
            if isinstance(body.get("names"), list):
                body["names"] = body["names"][:2]
    return body


@schemathesis.hook
def before_call(context, case, kwargs):
    """A log that is followed does not end, and a wait may take a minute."""
    if not isinstance(case.query, dict):
        return
    if case.path.endswith("/logs"):
        case.query.pop("follow", None)
    wait = str(case.query.get("wait_ms", ""))
    if wait.isdigit() and 50 < int(wait) <= 60_000:
        case.query["wait_ms"] = 50
