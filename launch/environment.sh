# Sourced by the other scripts: makes .venv beside this folder, installs AFA into it once, and puts it first on PATH.
# Usage: source launch/environment.sh [extra]      (extra: test, benchmark)
# PYTHON names the interpreter to start from (default: python3).

afa_environment() {
    local root extra stamp wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    extra=${1:+"[$1]"}
    stamp="$root/.venv/installed${1:+_$1}"
    wanted=$(cat "$root/requirements.txt" "$root/setup.py" | cksum)
    if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: ${PYTHON:-python3} is missing or older than 3.10; set PYTHON=/path/to/python3.10 or newer" >&2
        return 2
    fi
    if [ ! -x "$root/.venv/bin/python" ]; then
        "${PYTHON:-python3}" -m venv "$root/.venv" || {
            rm -rf "$root/.venv"
            echo "error: python3 could not make a virtual environment (on Debian: apt-get install python3-venv)" >&2
            return 2
        }
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into $root/.venv (once; about 5 GB with PyTorch)"
        "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extra" || return
        echo "$wanted" >"$stamp"
    fi
    PATH="$root/.venv/bin:$PATH"
    export PATH
}

afa_environment "$@"
