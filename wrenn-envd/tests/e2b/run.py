"""Runs the tests of this directory, without any test framework.

A test is a function `test_…` of a module `suite_….py`. It gets what its parameters name:
`box` (a Sandbox), `scratch` (a directory in the guest, removed afterwards). It may raise
`Skip`. Coroutine functions get an AsyncSandbox as `abox`.
"""

import asyncio
import contextlib
import importlib
import inspect
import os
import sys
import time
import traceback
from pathlib import Path

os.environ["E2B_DEBUG"] = "true"
sys.path.insert(0, str(Path(__file__).parent))

from guest import LONG, Skip, can_switch, connect, connect_async  # noqa: E402


def collect():
    for path in sorted(Path(__file__).parent.glob("suite_*.py")):
        module = importlib.import_module(path.stem)
        for name, function in vars(module).items():
            if name.startswith("test_") and inspect.isfunction(function):
                yield f"{path.stem.removeprefix('suite_')}::{name.removeprefix('test_')}", function


@contextlib.contextmanager
def scratch_directory(box, wanted):
    """A directory in the guest for a test that wants one, removed whoever owns what is in it."""
    if "scratch" not in wanted:
        yield {}
        return
    path = box.commands.run("mktemp -d", timeout=LONG).stdout.strip()
    try:
        yield {"scratch": path}
    finally:
        owner = "root" if can_switch(box) else None
        box.commands.run(f"rm -rf '{path}'", user=owner, timeout=LONG)


def run_sync(function):
    box = connect()
    wanted = inspect.signature(function).parameters
    with scratch_directory(box, wanted) as arguments:
        if "box" in wanted:
            arguments["box"] = box
        function(**arguments)


async def run_async(function):
    wanted = inspect.signature(function).parameters
    with scratch_directory(connect(), wanted) as arguments:
        await function(abox=await connect_async(), **arguments)


def main():
    arguments = sys.argv[1:]
    verbose = "-v" in arguments
    filters = [argument for argument in arguments if not argument.startswith("-")]
    passed, failed, skipped = 0, [], 0
    for name, function in collect():
        if filters and not any(wanted in name for wanted in filters):
            continue
        start = time.monotonic()
        try:
            if inspect.iscoroutinefunction(function):
                asyncio.run(run_async(function))
            else:
                run_sync(function)
        except Skip as reason:
            skipped += 1
            print(f"skip {name}: {reason}", flush=True)
        except Exception:
            failed.append(name)
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
        else:
            passed += 1
            if verbose:
                print(f"ok   {name} ({time.monotonic() - start:.2f} s)", flush=True)
    for name in failed:
        print(f"failed: {name}")
    if passed + len(failed) == 0:
        print("no test was run")
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
