"""Files: contents, metadata, directories."""

import gzip
import hashlib
import io
import os

from e2b import (
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
)
from guest import LONG, Skip, can_switch, http, first_token, raises


def auth():
    return {"X-Access-Token": first_token()} if first_token() else {}


def test_write_and_read(box, scratch):
    info = box.files.write(f"{scratch}/a.txt", "héllo")
    assert (info.name, info.path, info.type) == ("a.txt", f"{scratch}/a.txt", FileType.FILE)
    assert box.files.read(f"{scratch}/a.txt") == "héllo"
    assert bytes(box.files.read(f"{scratch}/a.txt", format="bytes")) == "héllo".encode()


def test_write_replaces_and_makes_directories(box, scratch):
    path = f"{scratch}/x/y/z.txt"
    box.files.write(path, "a long first version")
    box.files.write(path, "second")
    assert box.files.read(path) == "second"
    info = box.files.get_info(path)
    assert info.mode == 0o644 and info.permissions == "-rw-r--r--"
    assert box.files.get_info(f"{scratch}/x").mode == 0o755


def test_write_empty(box, scratch):
    box.files.write(f"{scratch}/empty", "")
    assert box.files.read(f"{scratch}/empty") == ""
    assert box.files.get_info(f"{scratch}/empty").size == 0


def test_write_keeps_an_executable_executable(box, scratch):
    path = f"{scratch}/script"
    box.files.write(path, "#!/bin/sh\necho one\n")
    box.commands.run(f"chmod 755 {path}", timeout=LONG)
    box.files.write(path, "#!/bin/sh\necho two\n")
    assert box.commands.run(path, timeout=LONG).stdout == "two\n"


def test_write_several(box, scratch):
    names = ["one", 'two "quoted"', "thrée;4", "back\\slash", "per%41cent"]
    entries = [{"path": f"{scratch}/{name}", "data": name} for name in names]
    written = box.files.write_files(entries)
    assert [info.path for info in written] == [entry["path"] for entry in entries]
    for name in names:
        assert box.files.read(f"{scratch}/{name}") == name


def test_write_as_a_stream(box, scratch):
    data = os.urandom(1 << 20) * 8
    box.files.write(f"{scratch}/stream", io.BytesIO(data))
    digest = box.commands.run(f"sha256sum < {scratch}/stream", timeout=LONG).stdout.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()
    box.files.write(f"{scratch}/pieces", (data[n : n + 70_001] for n in range(0, len(data), 70_001)))
    digest = hashlib.sha256()
    with box.files.read(f"{scratch}/pieces", format="stream") as stream:
        for piece in stream:
            digest.update(piece)
    assert digest.digest() == hashlib.sha256(data).digest()


def test_write_multipart_of_several_megabytes(box, scratch):
    data = os.urandom(5_000_003)
    box.files.write(f"{scratch}/big", data)
    assert bytes(box.files.read(f"{scratch}/big", format="bytes")) == data


def test_gzip_both_ways(box, scratch):
    text = "compress me " * 100_000
    box.files.write(f"{scratch}/z", text, gzip=True)
    assert box.files.get_info(f"{scratch}/z").size == len(text)
    assert box.files.read(f"{scratch}/z", gzip=True) == text
    status, headers, body = http(
        "GET", f"/files?path={scratch}/z", headers={"Accept-Encoding": "gzip", **auth()}
    )
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert len(body) < len(text) // 10 and gzip.decompress(body).decode() == text


def test_broken_gzip_changes_nothing(box, scratch):
    box.files.write(f"{scratch}/kept", "old")
    status, _, body = http(
        "POST",
        f"/files?path={scratch}/kept",
        gzip.compress(b"new" * 10_000)[:-20],
        {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip", **auth()},
    )
    assert status == 400, body
    assert box.files.read(f"{scratch}/kept") == "old"
    assert [entry.name for entry in box.files.list(scratch)] == ["kept"]


def test_range(box, scratch):
    box.files.write(f"{scratch}/r", "0123456789")
    for asked, status, expected in [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-100", 206, b"56789"),
        ("bytes=1-2,4-5", 200, b"0123456789"),
    ]:
        got = http("GET", f"/files?path={scratch}/r", headers={"Range": asked, **auth()})
        assert (got[0], got[2]) == (status, expected), asked
    status, headers, _ = http(
        "GET", f"/files?path={scratch}/r", headers={"Range": "bytes=10-", **auth()}
    )
    assert (status, headers["Content-Range"]) == (416, "bytes */10")


def test_metadata(box, scratch):
    path = f"{scratch}/tagged"
    try:
        info = box.files.write(path, "x", metadata={"Author": "Ada", "purpose": "a test"})
    except (InvalidArgumentException, SandboxException) as error:
        if "not supported" in str(error):
            raise Skip("the guest's file system keeps no metadata")
        raise
    expected = {"author": "Ada", "purpose": "a test"}
    assert info.metadata == expected
    assert box.files.get_info(path).metadata == expected
    assert box.files.list(scratch)[0].metadata == expected
    moved = box.files.rename(path, f"{scratch}/moved")
    assert moved.metadata == expected
    assert box.files.write(f"{scratch}/moved", "y").metadata is None
    assert box.files.get_info(f"{scratch}/moved").metadata is None


def test_reading_what_is_not_there(box, scratch):
    raises(FileNotFoundException, box.files.read, f"{scratch}/nothing")
    raises(FileNotFoundException, box.files.get_info, f"{scratch}/nothing")
    raises(FileNotFoundException, box.files.list, f"{scratch}/nothing")


def test_reading_a_directory(box, scratch):
    raises(InvalidArgumentException, box.files.read, scratch)
    raises(InvalidArgumentException, box.files.write, scratch, "x")


def test_reading_files_that_the_kernel_makes(box):
    assert "MemTotal" in box.files.read("/proc/meminfo")


def test_unknown_user(box, scratch):
    error = raises(Exception, box.files.read, f"{scratch}/a", user="no-such-user")
    assert type(error).__name__ == "AuthenticationException", repr(error)


def test_files_belong_to_their_user(box, scratch):
    if not can_switch(box):
        raise Skip("the daemon is not root")
    box.files.write(f"{scratch}/d/owned", "x", user="nobody")
    info = box.files.get_info(f"{scratch}/d/owned")
    assert info.owner == "nobody"
    assert box.files.get_info(f"{scratch}/d").owner == "nobody"
    box.files.make_dir(f"{scratch}/e/f", user="nobody")
    assert box.files.get_info(f"{scratch}/e").owner == "nobody"


def test_relative_paths_start_at_home(box):
    home = box.commands.run("echo $HOME", timeout=LONG).stdout.strip()
    info = box.files.write("wrenn-suite-relative", "x")
    try:
        assert info.path == f"{home}/wrenn-suite-relative"
        assert box.files.exists("~/wrenn-suite-relative")
    finally:
        box.files.remove("wrenn-suite-relative")


def test_list(box, scratch):
    box.files.write(f"{scratch}/b/c/deep", "x")
    box.files.write(f"{scratch}/a", "12")
    box.commands.run(f"ln -s a {scratch}/link; ln -s nowhere {scratch}/broken", timeout=LONG)
    entries = {entry.name: entry for entry in box.files.list(scratch)}
    assert sorted(entries) == ["a", "b", "broken", "link"]
    assert entries["a"].type == FileType.FILE and entries["a"].size == 2
    assert entries["b"].type == FileType.DIR
    assert entries["link"].type == FileType.SYMLINK
    assert entries["link"].symlink_target == f"{scratch}/a"
    assert entries["broken"].type == FileType.SYMLINK
    deep = [entry.path for entry in box.files.list(scratch, depth=3)]
    assert f"{scratch}/b/c/deep" in deep
    # As a depth-first walk meets them.
    assert deep == sorted(deep, key=lambda path: path.split("/"))
    assert f"{scratch}/b/c/deep" not in [e.path for e in box.files.list(scratch, depth=2)]
    raises(InvalidArgumentException, box.files.list, f"{scratch}/a")


def test_info(box, scratch):
    box.files.write(f"{scratch}/i", "12345")
    before = box.commands.run(f"stat -c '%U %G %a %Y' {scratch}/i", timeout=LONG).stdout.split()
    info = box.files.get_info(f"{scratch}/i")
    assert [info.owner, info.group, f"{info.mode:o}"] == before[:3]
    assert int(info.modified_time.timestamp()) == int(before[3])
    assert (info.size, info.type, info.symlink_target) == (5, FileType.FILE, None)


def test_exists_and_remove(box, scratch):
    assert not box.files.exists(f"{scratch}/d")
    box.files.write(f"{scratch}/d/e/f", "x")
    assert box.files.exists(f"{scratch}/d/e")
    box.files.remove(f"{scratch}/d")
    assert not box.files.exists(f"{scratch}/d")
    box.files.remove(f"{scratch}/d")


def test_make_dir(box, scratch):
    assert box.files.make_dir(f"{scratch}/n/m") is True
    assert box.files.make_dir(f"{scratch}/n/m") is False
    box.files.write(f"{scratch}/file", "")
    raises(InvalidArgumentException, box.files.make_dir, f"{scratch}/file")


def test_rename(box, scratch):
    box.files.write(f"{scratch}/old", "x")
    info = box.files.rename(f"{scratch}/old", f"{scratch}/new/place")
    assert (info.name, info.path) == ("place", f"{scratch}/new/place")
    assert box.files.read(f"{scratch}/new/place") == "x"
    assert not box.files.exists(f"{scratch}/old")
    raises(NotFoundException, box.files.rename, f"{scratch}/old", f"{scratch}/other")


def test_rename_across_file_systems(box, scratch):
    other = box.commands.run(
        f"test \"$(stat -c %d /dev/shm)\" != \"$(stat -c %d {scratch})\" && mktemp -d -p /dev/shm "
        "|| true",
        timeout=LONG,
    ).stdout.strip()
    if not other:
        raise Skip("the guest has one file system only")
    try:
        box.files.write(f"{other}/tree/file", "crosses")
        box.files.rename(f"{other}/tree", f"{scratch}/tree")
        assert box.files.read(f"{scratch}/tree/file") == "crosses"
        assert not box.files.exists(f"{other}/tree")
    finally:
        box.files.remove(other)


def test_compose(box, scratch):
    import json

    for n in range(3):
        box.files.write(f"{scratch}/part{n}", str(n) * 3)
    body = {
        "source_paths": [f"{scratch}/part{n}" for n in range(3)],
        "destination": f"{scratch}/whole",
    }
    status, _, answer = http(
        "POST",
        "/files/compose",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **auth()},
    )
    assert status == 200, answer
    assert box.files.read(f"{scratch}/whole") == "000111222"
    assert [entry.name for entry in box.files.list(scratch)] == ["whole"]


async def test_async_write_and_read(abox, scratch):
    await abox.files.write(f"{scratch}/async", "x")
    assert await abox.files.read(f"{scratch}/async") == "x"
