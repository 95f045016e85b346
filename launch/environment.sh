# Sourced by the other scripts: makes .venv beside this folder, installs AFA into it once, and puts it first on PATH.
# Usage: source launch/environment.sh EXTRA      (EXTRA: test, benchmark, onnx or '' for nothing extra; always give it,
#                                                 else the arguments of the sourcing script are used instead)
# PYTHON names the interpreter to start from (default: python3), AFA_VENV another folder instead of .venv,
# AFA_CONSTRAINTS another file of versions instead of constraints.txt.
# An existing environment is used as it is. The script deletes only environments that it made itself.

afa_environment() {
    local root folder python made stamp wanted constraints
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    folder=${AFA_VENV:-$root/.venv}
    [[ $folder == /* ]] || folder=$PWD/$folder
    python="$folder/bin/python"
    made="$folder/made_by_afa"
    constraints=${AFA_CONSTRAINTS:-$root/constraints.txt}
    case ${1-none} in
    '' | test | benchmark | onnx) ;;
    *)
        echo "error: source launch/environment.sh EXTRA: EXTRA is test, benchmark, onnx or '', not '${1-}'" >&2
        return 2
        ;;
    esac
    if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: ${PYTHON:-python3} is missing or older than 3.11; set PYTHON=/path/to/python3.11 or newer" >&2
        return 2
    fi
    # A killed attempt, or another Python of the system's in the meantime, leaves one without pip.
    if ! "$python" -c 'import pip' 2>/dev/null; then
        if [ -f "$made" ] && [ ! -L "$folder" ]; then
            rm -rf "$folder"
        elif [ -L "$folder" ] || { [ -e "$folder" ] && [ -n "$(ls -A "$folder" 2>&1)" ]; }; then
            echo "error: $folder has no working pip, and this script did not make it: move it away, install pip there" \
                "(uv pip install --python '$python' pip), or set AFA_VENV to another folder" >&2
            return 2
        fi
        # The mark comes first: killed at any moment, the next start knows whose it is.
        # shellcheck disable=SC2015 # the last part is for any of the three that fails
        mkdir -p "$folder" && touch "$made" && "${PYTHON:-python3}" -m venv "$folder" || {
            if [ -f "$made" ]; then rm -rf "$folder"; fi
            echo "error: python3 could not make a virtual environment (on Debian: apt-get install python3-venv)" >&2
            return 2
        }
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: the Python in $folder is older than 3.11: move it away, or set AFA_VENV to another folder" >&2
        return 2
    fi
    stamp="$folder/installed${1:+_$1}"
    wanted="$(cat "$root/requirements.txt" "$root/setup.py" "$constraints" | cksum) $root"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into $folder (once; about 5 GB with PyTorch)"
        "$python" -m pip install --quiet --disable-pip-version-check -c "$constraints" -e "$root${1:+[$1]}" || {
            echo "error: the installation failed: it needs a network and 6 GB of disk; the same command tries again" >&2
            return 2
        }
        "$python" -c 'import cv2' || {
            echo "error: OpenCV lacks a library of the system (on Debian: apt-get install libgl1 libglib2.0-0)" >&2
            return 2
        }
        echo "$wanted" >"$stamp"
    fi
    PATH="$folder/bin:$PATH"
    export PATH
}

afa_environment "$@"
