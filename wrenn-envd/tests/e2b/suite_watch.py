"""Watching directories, by polling and by streaming."""

import asyncio

from e2b import FileNotFoundException, FilesystemEventType, InvalidArgumentException, SandboxException
from guest import LONG, PATIENCE, raises, until


class Seen:
    """Events of a polled watch, gathered until one shows up."""

    def __init__(self, watch):
        self.watch = watch
        self.events = []

    def until(self, kind, name):
        def found():
            self.events.extend(self.watch.get_new_events())
            return next((e for e in self.events if (e.type, e.name) == (kind, name)), None)

        return until(found, f"{kind} of {name} in {self.events}")


def test_tells_what_happens(box, scratch):
    box.files.write(f"{scratch}/file", "before")
    watch = box.files.watch_dir(scratch)
    seen = Seen(watch)
    box.files.write(f"{scratch}/file", "after")
    assert any(
        (e.type, e.name) == (FilesystemEventType.WRITE, "file") for e in watch.get_new_events()
    ), "what was done before asking is in the answer"
    box.files.write(f"{scratch}/new", "x")
    seen.until(FilesystemEventType.WRITE, "new")
    assert [e.type for e in seen.events if e.name == "new"] == [
        FilesystemEventType.CREATE,
        FilesystemEventType.CHMOD,
        FilesystemEventType.WRITE,
    ]
    box.commands.run(f"chmod 600 {scratch}/new; mv {scratch}/new {scratch}/moved", timeout=LONG)
    seen.until(FilesystemEventType.CHMOD, "new")
    seen.until(FilesystemEventType.RENAME, "new")
    seen.until(FilesystemEventType.CREATE, "moved")
    box.files.remove(f"{scratch}/moved")
    seen.until(FilesystemEventType.REMOVE, "moved")
    assert not any("wrenn" in event.name for event in seen.events)
    watch.stop()
    raises(SandboxException, watch.get_new_events)


def test_recursive(box, scratch):
    box.files.make_dir(f"{scratch}/old/deep")
    watch = box.files.watch_dir(scratch, recursive=True)
    seen = Seen(watch)
    box.files.write(f"{scratch}/old/deep/file", "x")
    seen.until(FilesystemEventType.WRITE, "old/deep/file")
    box.files.write(f"{scratch}/brand/new/dir/file", "x")
    seen.until(FilesystemEventType.CREATE, "brand")
    seen.until(FilesystemEventType.CREATE, "brand/new/dir/file")
    box.commands.run(f"echo more >> {scratch}/brand/new/dir/file", timeout=LONG)
    seen.until(FilesystemEventType.WRITE, "brand/new/dir/file")
    watch.stop()


def test_not_recursive_unless_asked_for(box, scratch):
    box.files.make_dir(f"{scratch}/below")
    watch = box.files.watch_dir(scratch)
    box.files.write(f"{scratch}/below/file", "x")
    box.files.write(f"{scratch}/mark", "x")
    seen = Seen(watch)
    seen.until(FilesystemEventType.CREATE, "mark")
    assert not any("file" in event.name for event in seen.events), seen.events
    watch.stop()


def test_entries(box, scratch):
    watch = box.files.watch_dir(scratch, include_entry=True)
    seen = Seen(watch)
    box.files.write(f"{scratch}/file", "12345")
    event = seen.until(FilesystemEventType.WRITE, "file")
    assert event.entry is not None and event.entry.path == f"{scratch}/file"
    assert event.entry.size == 5
    box.files.remove(f"{scratch}/file")
    assert seen.until(FilesystemEventType.REMOVE, "file").entry is None
    watch.stop()


def test_of_nothing(box, scratch):
    raises(FileNotFoundException, box.files.watch_dir, f"{scratch}/nothing")
    box.files.write(f"{scratch}/file", "")
    raises(InvalidArgumentException, box.files.watch_dir, f"{scratch}/file")


async def test_streamed(abox, scratch):
    events, arrived = [], asyncio.Event()

    def take(event):
        events.append((event.type, event.name))
        if (FilesystemEventType.WRITE, "sub/file") in events:
            arrived.set()

    watch = await abox.files.watch_dir(scratch, on_event=take, recursive=True, timeout=0)
    await abox.files.write(f"{scratch}/sub/file", "x")
    await abox.commands.run(f"echo y >> {scratch}/sub/file", timeout=LONG)
    await asyncio.wait_for(arrived.wait(), 120 * PATIENCE)
    await watch.stop()
    assert (FilesystemEventType.CREATE, "sub") in events
