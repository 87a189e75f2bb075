#!/bin/sh
# Runs the suite against a daemon on this host, in namespaces of its own: the client's
# port is fixed, and neither somebody else's daemon nor any other process may be meant.
# What a test leaves running ends with the namespace.
#
#   native.sh DAEMON [run.py's arguments]
#
# Root is needed for the namespaces. WRENN_SUITE_PYTHON is the interpreter that
# client.sh prints.
set -eu

daemon=$(realpath "$1")
shift
here=$(dirname "$(realpath "$0")")
export here daemon
: "${WRENN_SUITE_PYTHON:?is not set}"

# The daemon runs as root and does as it is told, so nothing that lasts can be written:
# the home is a copy-on-write view of the real one, gone with the namespace. Its start files
# are taken out of the view: a test that ends a shell may end it while it does what they say.
exec unshare --net --pid --mount --fork --mount-proc --kill-child sh -eu -c '
    ip link set lo up
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work
    # Daemon and suite may lie in /tmp, which is another below.
    cp "$daemon" /mnt/wrenn-envd
    cp -r "$here" /mnt/suite
    mount -t overlay -o "lowerdir=$HOME,upperdir=/mnt/upper,workdir=/mnt/work" overlay "$HOME"
    rm -f "$HOME/.bash_profile" "$HOME/.bash_login" "$HOME/.profile" "$HOME/.bashrc"
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mount -o remount,bind,ro /
    /mnt/wrenn-envd --address 127.0.0.1 --default-user "$(id -un)" &
    pid=$!
    code=0
    "$WRENN_SUITE_PYTHON" /mnt/suite/run.py "$@" || code=$?
    kill "$pid"
    wait "$pid" || { echo "the daemon did not end as asked" >&2; code=1; }
    exit "$code"
' sh "$@"
