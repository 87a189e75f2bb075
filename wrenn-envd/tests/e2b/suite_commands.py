"""Commands: run, background, connect, list, kill, input, limits."""

import hashlib
import threading
import time

from e2b import (
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)
from guest import LONG, Skip, can_switch, raises, until


def test_run_keeps_streams_apart(box):
    result = box.commands.run("echo out; echo err >&2", timeout=LONG)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    assert result.error is None


def test_run_reports_exit_codes(box):
    error = raises(CommandExitException, box.commands.run, "echo x; exit 3", timeout=LONG)
    assert (error.exit_code, error.stdout, error.error) == (3, "x\n", "exit status 3")


def test_run_reports_signals(box):
    error = raises(CommandExitException, box.commands.run, "kill -9 $$", timeout=LONG)
    assert error.exit_code == -1
    assert error.error == "signal: killed"


def test_run_calls_back_in_order(box):
    seen = []
    box.commands.run("for i in 1 2 3; do echo $i; done", on_stdout=seen.append, timeout=LONG)
    assert "".join(seen) == "1\n2\n3\n"


def test_run_sees_envs_and_cwd(box, scratch):
    result = box.commands.run(
        'echo "$GREETING"; pwd', envs={"GREETING": "hé llo\n$x"}, cwd=scratch, timeout=LONG
    )
    assert result.stdout == f"hé llo\n$x\n{scratch}\n"


def test_run_in_missing_cwd_is_an_argument_error(box):
    raises(InvalidArgumentException, box.commands.run, "true", cwd="/no/such/place", timeout=LONG)


def test_run_has_a_login_environment(box):
    out = box.commands.run('echo "$HOME|$USER|$LOGNAME|$SHELL"; id -un', timeout=LONG).stdout
    values, name = out.split()
    home, user, logname, shell = values.split("|")
    assert home.startswith("/") and shell.startswith("/")
    assert user == logname == name


def test_run_as_another_user(box):
    if not can_switch(box):
        raise Skip("the daemon is not root")
    assert box.commands.run("id -un", user="nobody", timeout=LONG).stdout == "nobody\n"
    groups = box.commands.run("id -G", user="nobody", timeout=LONG).stdout.split()
    assert "0" not in groups


def test_run_as_nobody_we_know_is_refused(box):
    error = raises(Exception, box.commands.run, "true", user="no-such-user", timeout=LONG)
    assert type(error).__name__ == "AuthenticationException", repr(error)


def test_run_survives_bad_utf8(box):
    result = box.commands.run(r"printf 'a\xff\xfeb\xc3'", timeout=LONG)
    assert result.stdout == "a\ufffd\ufffdb\ufffd"


def test_run_joins_characters_split_between_chunks(box):
    # 3-byte characters never line up with chunks of 32 KiB.
    text = "€" * 100_000
    result = box.commands.run(
        "i=0; while [ $i -lt 100000 ]; do printf '€'; i=$((i+1)); done", timeout=LONG
    )
    assert result.stdout == text


def test_run_delivers_large_output_whole(box):
    size = 20_000_000
    digest, count = hashlib.sha256(), 0

    def take(text):
        nonlocal count
        count += len(text)
        digest.update(text.encode())

    box.commands.run(
        f"yes 0123456789abcdef | head -c {size}", on_stdout=take, timeout=LONG, retain_output=False
    )
    expected = (b"0123456789abcdef\n" * (size // 17 + 1))[:size]
    assert count == size
    assert digest.digest() == hashlib.sha256(expected).digest()


def test_run_does_not_wait_for_leftover_children(box):
    start = time.monotonic()
    result = box.commands.run("sleep 1000 & echo $!", timeout=LONG)
    assert time.monotonic() - start < 500
    box.commands.run(f"kill {int(result.stdout)}", timeout=LONG)


def test_timeout_kills_the_command(box, scratch):
    pidfile = f"{scratch}/pid"
    raises(TimeoutException, box.commands.run, f"echo $$ > {pidfile}; sleep 1000", timeout=5)
    pid = box.files.read(pidfile).strip() if box.files.exists(pidfile) else None
    if pid:
        until(
            lambda: "gone" in box.commands.run(
                f"kill -0 {pid} 2>/dev/null && echo there || echo gone", timeout=LONG
            ).stdout,
            "the command is gone",
        )


def test_background_and_wait(box):
    handle = box.commands.run("echo first; echo second >&2; exit 4", background=True, timeout=LONG)
    assert handle.pid > 0
    error = raises(CommandExitException, handle.wait)
    assert (error.exit_code, error.stdout, error.stderr) == (4, "first\n", "second\n")


def test_list_shows_what_runs(box):
    handle = box.commands.run("sleep 1000", background=True, timeout=LONG, envs={"MARK": "1"})
    listed = [process for process in box.commands.list() if process.pid == handle.pid]
    assert len(listed) == 1
    assert listed[0].cmd == "/bin/bash"
    assert listed[0].args == ["-l", "-c", "sleep 1000"]
    assert listed[0].envs == {"MARK": "1"}
    assert handle.kill()
    until(
        lambda: all(process.pid != handle.pid for process in box.commands.list()),
        "a killed command is not listed",
    )


def test_kill_ends_the_command_and_its_children(box, scratch):
    handle = box.commands.run(
        f"sleep 1000 & echo $! > {scratch}/child; sleep 1000", background=True, timeout=LONG
    )
    until(lambda: box.files.exists(f"{scratch}/child"), "the child has started")
    child = until(lambda: box.files.read(f"{scratch}/child").strip(), "the child's pid")
    assert box.commands.kill(handle.pid)
    error = raises(CommandExitException, handle.wait)
    assert error.error == "signal: killed"
    until(
        lambda: "gone" in box.commands.run(
            f"kill -0 {child} 2>/dev/null && echo there || echo gone", timeout=LONG
        ).stdout,
        "the child is gone, too",
    )


def test_kill_of_nobody_says_so(box):
    assert box.commands.kill(4_000_000) is False


def test_connect_follows_a_running_command(box, scratch):
    handle = box.commands.run(
        f"until [ -e {scratch}/go ]; do sleep 0.05; done; echo after; exit 5",
        background=True,
        timeout=LONG,
    )
    follower = box.commands.connect(handle.pid, timeout=LONG)
    assert follower.pid == handle.pid
    box.files.write(f"{scratch}/go", "")
    for one in (handle, follower):
        error = raises(CommandExitException, one.wait)
        assert (error.stdout, error.exit_code) == ("after\n", 5)


def test_connect_after_disconnect_misses_nothing(box, scratch):
    handle = box.commands.run(
        f"until [ -e {scratch}/go ]; do sleep 0.05; done; echo unattended; touch {scratch}/said;"
        f"until [ -e {scratch}/end ]; do sleep 0.05; done",
        background=True,
        timeout=0,
    )
    handle.disconnect()
    box.files.write(f"{scratch}/go", "")
    until(lambda: box.files.exists(f"{scratch}/said"), "the command goes on alone")
    follower = box.commands.connect(handle.pid, timeout=LONG)
    box.files.write(f"{scratch}/end", "")
    assert follower.wait().stdout == "unattended\n"


def test_connect_to_an_ended_command(box):
    handle = box.commands.run("exit 6", background=True, timeout=LONG)
    raises(CommandExitException, handle.wait)
    error = raises(CommandExitException, box.commands.connect(handle.pid, timeout=LONG).wait)
    assert error.exit_code == 6


def test_connect_to_nobody(box):
    raises(NotFoundException, box.commands.connect, 4_000_000, timeout=LONG)


def test_stdin(box):
    handle = box.commands.run("cat", background=True, stdin=True, timeout=LONG)
    handle.send_stdin("line ")
    box.commands.send_stdin(handle.pid, b"two\n")
    handle.close_stdin()
    assert handle.wait().stdout == "line two\n"


def test_stdin_of_several_megabytes(box):
    handle = box.commands.run("sha256sum", background=True, stdin=True, timeout=LONG)
    data = "0123456789abcdef" * 400_000
    handle.send_stdin(data)
    handle.close_stdin()
    assert handle.wait().stdout.split()[0] == hashlib.sha256(data.encode()).hexdigest()


def test_stdin_stream(box):
    handle = box.commands.run("cat", background=True, stdin=True, timeout=LONG)
    box.commands.stream_input(handle.pid, (f"{n}\n" for n in range(100)), timeout=LONG)
    handle.close_stdin()
    assert handle.wait().stdout == "".join(f"{n}\n" for n in range(100))


def test_stdin_is_closed_unless_asked_for(box):
    assert box.commands.run("cat; echo end", timeout=LONG).stdout == "end\n"
    handle = box.commands.run("sleep 1000", background=True, timeout=LONG)
    raises(SandboxException, box.commands.send_stdin, handle.pid, "x")
    handle.kill()


def test_many_at_once(box):
    results, threads = {}, []

    def one(n):
        results[n] = box.commands.run(f"echo {n}; exit 0", timeout=LONG).stdout

    for n in range(20):
        threads.append(threading.Thread(target=one, args=(n,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n" for n in range(20)}


async def test_async_run(abox):
    result = await abox.commands.run("echo async; exit 0", timeout=LONG)
    assert result.stdout == "async\n"
