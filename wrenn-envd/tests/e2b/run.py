"""Runs the tests of this directory, without any test framework.

A test is a function `test_…` of a module `suite_….py`. It gets what its parameters name:
`box` (a Sandbox), `scratch` (a directory in the guest, removed afterwards). It may raise
`Skip`. Coroutine functions get an AsyncSandbox as `abox`.
"""

import asyncio
import importlib
import inspect
import os
import sys
import time
import traceback
from pathlib import Path

os.environ["E2B_DEBUG"] = "true"
sys.path.insert(0, str(Path(__file__).parent))

from guest import Skip, connect, connect_async  # noqa: E402


def collect():
    for path in sorted(Path(__file__).parent.glob("suite_*.py")):
        module = importlib.import_module(path.stem)
        for name, function in vars(module).items():
            if name.startswith("test_") and inspect.isfunction(function):
                yield f"{path.stem.removeprefix('suite_')}::{name.removeprefix('test_')}", function


def run_sync(function):
    box = connect()
    wanted = inspect.signature(function).parameters
    arguments = {}
    if "box" in wanted:
        arguments["box"] = box
    if "scratch" in wanted:
        arguments["scratch"] = box.commands.run("mktemp -d", timeout=300).stdout.strip()
    try:
        function(**arguments)
    finally:
        if "scratch" in arguments:
            box.commands.run(f"rm -rf '{arguments['scratch']}'", timeout=300)


async def run_async(function):
    box = connect()
    wanted = inspect.signature(function).parameters
    arguments = {"abox": await connect_async()}
    if "scratch" in wanted:
        arguments["scratch"] = box.commands.run("mktemp -d", timeout=300).stdout.strip()
    try:
        await function(**arguments)
    finally:
        if "scratch" in arguments:
            box.commands.run(f"rm -rf '{arguments['scratch']}'", timeout=300)


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
