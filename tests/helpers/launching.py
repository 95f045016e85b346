"""The launch scripts with stand-ins for programs: what is started, by whom, in which order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
INSTALLED_FROM = ("requirements.txt", "setup.py", "constraints.txt")

# Says what it was called with, as one line. CODE is its exit code. With SLEEP it runs on until it is told to end:
# always (1), or where its call holds that text, and the others end well. A call that FAIL fits ends as if it was
# killed. LISTS is what launch/stages.py says, FACTS what launch/recipe.py says. Labels and scores leave a file behind.
STAND_IN = """#!/bin/bash
if [ "$1" = -c ]; then exit 0; fi
echo "$(basename "$0") $*" >> "$CALLS"
if [ -n "${FAIL:-}" ] && [[ "$*" == $FAIL ]]; then exit 137; fi
call=" $*"
output=${call##* --output }
output=${output%% --*}
case $call in
*" launch/stages.py "*) printf '%s\\n' ${LISTS:-val val train train val}; exit ;;
*" launch/recipe.py "*) printf '%s\\n' ${FACTS:-8 4 work_dirs/own}; exit ;;
*" tools/label.py "*) mkdir -p "$output"; [ -e "$output/manifest.json" ] || : > "$output/manifest.json" ;;
*" tools/score.py "* | *" tools/eval.py "*) mkdir -p "$(dirname "$output")"; sleep 0.01; : > "$output" ;;
esac
trap 'exit "${CODE:-0}"' TERM
if [ -n "${SLEEP:-}" ] && [[ "$SLEEP" == 1 || "$*" == *"$SLEEP"* ]]; then while true; do sleep 0.05; done; fi
if [ -n "${SLEEP:-}" ] && [ "$SLEEP" != 1 ]; then exit; fi
exit "${CODE:-0}"
"""
STAND_INS = {
    "python": STAND_IN,
    "torchrun": STAND_IN,
    "srun": '#!/bin/bash\necho $$ > "$CALLS.srun"\nuntil [[ $1 =~ ^(python|torchrun)$ ]]; do shift; done\nexec "$@"\n',
    "nproc": '#!/bin/bash\necho "${CORES:-1}"\n',
    "nvidia-smi": '#!/bin/bash\nfor gpu in $(seq "${FOUND_GPUS:-0}"); do echo "GPU $gpu"; done\n',
    "scontrol": '#!/bin/bash\n[ "$1" = show ] && echo node7 || echo "scontrol $*" >> "$CALLS"\n',
    "scancel": '#!/bin/bash\necho "scancel $*" >> "$CALLS"\nkill -TERM "$(cat "$CALLS.srun")"\n',
}


def start(checkout: Path, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}",
        "CALLS": str(checkout / "calls"),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_SUBMIT_DIR": str(checkout),
        **variables,
    }
    return subprocess.Popen(
        ["bash", f"launch/{script}", *arguments],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def calls(checkout: Path) -> list[str]:
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


def finished(checkout: Path, script: str, *arguments: str, code: int = 0, **variables: str) -> str:
    process = start(checkout, script, *arguments, **variables)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output
