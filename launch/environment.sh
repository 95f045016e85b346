# Sourced by the other scripts: makes .venv beside this folder, installs AFA into it once, and puts it first on PATH.
# Usage: source launch/environment.sh EXTRA      (EXTRA: test, benchmark or '' for nothing extra; never left out, as the
#                                                 sourcing script's own arguments would then be taken for it)
# PYTHON names the interpreter to start from (default: python3).

afa_environment() {
    local root python stamp wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    python="$root/.venv/bin/python"
    case ${1-none} in
    '' | test | benchmark) ;;
    *)
        echo "error: source launch/environment.sh EXTRA: EXTRA is test, benchmark or '', not '${1-}'" >&2
        return 2
        ;;
    esac
    if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: ${PYTHON:-python3} is missing or older than 3.10; set PYTHON=/path/to/python3.10 or newer" >&2
        return 2
    fi
    # A killed attempt, or another Python of the system's in the meantime, leaves one without pip.
    if ! "$python" -c 'import pip' 2>/dev/null; then
        rm -rf "$root/.venv"
        "${PYTHON:-python3}" -m venv "$root/.venv" || {
            rm -rf "$root/.venv"
            echo "error: python3 could not make a virtual environment (on Debian: apt-get install python3-venv)" >&2
            return 2
        }
    fi
    stamp="$root/.venv/installed${1:+_$1}"
    wanted="$(cat "$root/requirements.txt" "$root/setup.py" | cksum) $root"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into $root/.venv (once; about 5 GB with PyTorch)"
        "$python" -m pip install --quiet --disable-pip-version-check -e "$root${1:+[$1]}" || {
            echo "error: the installation failed: it needs a network and 6 GB of disk; the same command tries again" >&2
            return 2
        }
        "$python" -c 'import cv2' || {
            echo "error: OpenCV lacks a library of the system (on Debian: apt-get install libgl1 libglib2.0-0)" >&2
            return 2
        }
        echo "$wanted" >"$stamp"
    fi
    PATH="$root/.venv/bin:$PATH"
    export PATH
}

afa_environment "$@"
