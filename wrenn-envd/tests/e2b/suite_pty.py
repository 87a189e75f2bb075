"""Terminals."""

from e2b import CommandExitException, NotFoundException, PtySize
from guest import LONG, raises


class Screen:
    """Everything a terminal has shown; can be waited for."""

    def __init__(self, handle):
        self.handle = handle
        self.text = b""
        self.events = iter(handle)

    def until(self, wanted):
        while wanted not in self.text:
            try:
                _, _, data = next(self.events)
            except StopIteration:
                raise AssertionError(f"the terminal ended without {wanted!r}: {self.text!r}")
            self.text += data or b""
        self.text = self.text.split(wanted, 1)[1]


def open_terminal(box, **named):
    return box.pty.create(PtySize(rows=24, cols=80), timeout=LONG, **named)


def test_runs_an_interactive_shell(box):
    handle = open_terminal(box, envs={"MARK": "set"})
    screen = Screen(handle)
    box.pty.send_stdin(handle.pid, b'echo "$((20+3)) $MARK $TERM"\n')
    screen.until(b"23 set xterm-256color")
    box.pty.send_stdin(handle.pid, b"exit 7\n")
    assert raises(CommandExitException, handle.wait).exit_code == 7


def test_has_a_size_and_follows_it(box):
    handle = open_terminal(box)
    screen = Screen(handle)
    box.pty.send_stdin(handle.pid, b"stty size\n")
    screen.until(b"24 80")
    box.pty.resize(handle.pid, PtySize(rows=50, cols=132))
    box.pty.send_stdin(handle.pid, b"stty size\n")
    screen.until(b"50 132")
    assert handle.kill()


def test_ctrl_c_interrupts_the_foreground(box):
    handle = open_terminal(box)
    screen = Screen(handle)
    # The words are split so that the echo of what is typed does not look like the answer.
    box.pty.send_stdin(
        handle.pid,
        b"sh -c 'trap \"echo cau\"\"ght; exit 9\" INT; echo rea\"\"dy; "
        b"while :; do sleep 0.05; done'; echo code=$?\n",
    )
    screen.until(b"ready")
    box.pty.send_stdin(handle.pid, b"\x03")
    screen.until(b"caught")
    screen.until(b"code=9")
    assert handle.kill()


def test_stream_input(box):
    handle = open_terminal(box)
    screen = Screen(handle)
    box.pty.stream_input(handle.pid, [b"echo $((", b"40+2", b"))\n"], timeout=LONG)
    screen.until(b"42")
    assert handle.kill()


def test_connects_to_a_terminal(box):
    handle = open_terminal(box)
    handle.disconnect()
    again = box.pty.connect(handle.pid, timeout=LONG)
    screen = Screen(again)
    box.pty.send_stdin(handle.pid, b"echo $((50+5))\n")
    screen.until(b"55")
    assert box.pty.kill(handle.pid)
    assert box.pty.kill(4_000_000) is False


def test_killing_takes_background_jobs_along(box, scratch):
    handle = open_terminal(box, cwd=scratch)
    screen = Screen(handle)
    box.pty.send_stdin(handle.pid, b"sleep 1000 & echo job $!.\n")
    screen.until(b"job ")
    job = b""
    while not job.endswith(b"."):
        if not screen.text:
            _, _, data = next(screen.events)
            screen.text += data or b""
        job, screen.text = job + screen.text[:1], screen.text[1:]
        if b"$" in job:  # the echo of what was typed
            screen.until(b"job ")
            job = b""
    assert handle.kill()
    pid = int(job[:-1])
    from guest import until

    until(
        lambda: "gone" in box.commands.run(
            f"kill -0 {pid} 2>/dev/null && echo there || echo gone", timeout=LONG
        ).stdout,
        "the job is gone",
    )


def test_input_for_nobody(box):
    raises(NotFoundException, box.pty.send_stdin, 4_000_000, b"x")
    raises(NotFoundException, box.pty.resize, 4_000_000, PtySize(rows=1, cols=1))
