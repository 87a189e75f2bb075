#!/bin/sh
# Installs schemathesis into a virtual environment in the user's cache directory, unless these
# versions are there already, and prints the directory of its programs.
set -eu

requirements=$(dirname "$(realpath "$0")")/requirements.txt
key=$(sha256sum "$requirements" | cut -c 1-16)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/wrenn/schemathesis/$key
mkdir -p "$(dirname "$venv")"
# Of two runs at once, the second waits and then finds it done.
exec 9>"$venv.lock"
flock 9
# The mark is made last, so that it vouches for the whole folder.
if ! [ -e "$venv/complete" ]; then
    python3 -m venv --clear "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$requirements" >&2
    touch "$venv/complete"
fi
echo "$venv/bin"
