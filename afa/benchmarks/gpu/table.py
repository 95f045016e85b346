"""The measurements as a Markdown page, and as lines on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADING = "# AFA on a GPU: "
"""What every page begins with."""

_SMALL = "**The small setting: it tries the command. None of these figures is a measurement of speed.**"


def table(report: Mapping[str, Any]) -> str:
    """The page of a report, as :func:`afa.benchmarks.gpu.plan.run` writes it."""
    cells = {cell["name"]: cell for cell in report["cells"]}
    machine = cells.get("machine", {"figures": {}})["figures"]
    small = report["setting"]["small"]
    parts = [
        f"{HEADING}{machine.get('gpu') or machine.get('processor') or 'unknown'}",
        *([_SMALL] if small else []),
        *([] if report["complete"] else ["**Not complete: the command was ended, or is still at work.**"]),
        _machine(machine, report),
        *_training(report),
        *_values(cells.get("values")),
        *_profile(cells.get("profile")),
        *_graphs(cells.get("graphs")),
        *_feeding(cells, report["summary"]),
        *_missing(report["cells"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(cell: Mapping[str, Any]) -> str:
    """One line about a measurement that has just ended."""
    found, said = cell["figures"], []
    if "gpu" in found:
        said.append(str(found["gpu"]))
    for phase, row in found.get("phases", {}).items():
        said.append(f"{phase} {_rate(row['step_s'])}")
    if "agrees" in found:
        said.append("the CPU's values" if found["agrees"] else "NOT THE CPU'S VALUES")
    if "images_per_s" in found:
        said.append(f"{found['images_per_s']:.1f} images/s")
    if "loader" in found:
        said.append(f"up to {max(found['loader'].values()):.0f} images/s")
    if found.get("idle_share") is not None:
        said.append(f"the GPU waits {found['idle_share']:.0%} of the time")
    for kind, ratio in found.get("ratio_to_plain", {}).items():
        said.append(f"{kind} {ratio:.2f}")
    if cell["status"] != "done":
        said.append(f"{cell['status']}: {cell['reason']}")
    return f"{cell['name']}: {', '.join(said) or 'done'}"


def _machine(facts: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    state, packages = facts.get("gpu_state") or {}, facts.get("packages") or {}
    rows: list[tuple[str, Any]] = [
        ("date", report["started"]),
        ("afa", " ".join(str(text) for text in (packages.get("afa"), facts.get("git")) if text)),
        ("GPU memory", _unit(facts.get("gpu_memory_gb"), "GB")),
        ("compute capability", facts.get("compute_capability")),
        ("driver", state.get("driver")),
        ("CUDA, cuDNN", ", ".join(str(facts[key]) for key in ("cuda", "cudnn") if facts.get(key))),
        ("ROCm", facts.get("rocm")),
        ("packages", ", ".join(f"{name} {text}" for name, text in packages.items() if name != "afa")),
        ("processor", facts.get("processor")),
        ("cores", facts.get("cores")),
        ("load of the machine at the start", facts.get("load") and f"{facts['load'][0]:.1f}"),
        ("GPU at the start: memory in use", _unit(facts.get("gpu_memory_used_by_all_gb"), "GB")),
        ("GPU at the start: utilisation", _unit(state.get("utilisation_percent"), "%")),
        ("GPU at the start: processes", facts.get("gpu_processes")),
        ("MIG", state.get("mig")),
        ("time of all measurements", _unit(report["seconds"], "s")),
    ]
    return _table(("", ""), [(name, str(value)) for name, value in rows if value not in (None, "")])


def _training(report: Mapping[str, Any]) -> list[str]:
    hours = report["summary"].get("hours", {})
    rows = []
    for cell in report["cells"]:
        phases = cell["figures"].get("phases")
        if not phases:
            continue
        steps = [_spread(phases[name]) if name in phases else "-" for name in _PHASES]
        memory = [row["reserved_peak_gb"] for row in phases.values() if "reserved_peak_gb" in row]
        first = sum(row["warm_up_s"] for row in phases.values())
        busy = cell["figures"].get("busy") or {}
        whole = hours.get(cell["name"])
        rows.append(
            (
                cell["name"],
                *steps,
                "-" if whole is None else f"{whole:.2f}",
                _number(max(memory, default=None)),
                f"{first:.0f}",
                _number(busy.get("sm_clock_mhz"), 0),
            )
        )
    if not rows:
        return []
    batch = next(cell["figures"]["batch"] for cell in report["cells"] if cell["figures"].get("batch"))
    text = (
        f"Steps per second of VOC's recipe at batch {batch}: median, in brackets the quartiles. The hours are those of "
        "all steps of the recipe: without validation, checkpoints and waiting for images. Memory is what PyTorch "
        "holds at most. Warm-up includes compilation."
    )
    head = ("", *_PHASES, "hours", "memory, GB", "warm-up, s", "clock at work, MHz")
    return ["## Training", text, _table(head, rows)]


_PHASES = ("propagated", "refined", "classification")


def _values(cell: Mapping[str, Any] | None) -> list[str]:
    if cell is None or not cell["figures"].get("precisions"):
        return []
    rows = []
    for precision, found in cell["figures"]["precisions"].items():
        if "reason" in found:
            rows.append((precision, "", found["reason"], "", ""))
            continue
        for part in ("network", "par"):
            for name, row in found[part].items():
                rows.append(
                    (precision, f"{part}: {name}", _small_number(row["largest"]), _small_number(row["relative"]), "")
                )
        for name, share in found["labels"].items():
            rows.append((precision, f"label: {name}", "", "", _small_number(share)))
        for name, (reference, own) in found["losses"].items():
            rows.append((precision, f"loss: {name}", f"{_small_number(reference, 5)}, {_small_number(own, 5)}", "", ""))
        rows.append((precision, "gradients", "", _small_number(found["gradients"]), ""))
    head = ("", "", "largest difference, or both losses", "relative", "pixels that differ")
    found = cell["figures"]
    verdict = ""
    if "agrees" in found:
        does = "agree" if found["agrees"] else "DO NOT AGREE"
        verdict = (
            f"In float32 the network's values and PAR {does} with the CPU's (bound: {found['bound']:g}, relative)."
        )
    return ["## The same values as on the CPU, in float32 there", verdict, _table(head, rows)]


def _profile(cell: Mapping[str, Any] | None) -> list[str]:
    if cell is None or not cell["figures"]:
        return []
    found = cell["figures"]
    parts = [f"## Where a step's time goes ({found['precision']}, propagated labels)"]
    said = [f"A step takes {1e3 * found['step_s']:.1f} ms."]
    if "idle_share" in found:
        said.append(f"The GPU works {1e3 * found['busy_s']:.1f} ms of it, and waits {found['idle_share']:.0%}.")
    if "matrix_gflop_per_s" in found:
        floor = found["floor_gflop"] / found["matrix_gflop_per_s"]
        said.append(
            f"Its necessary arithmetic, {found['floor_gflop']:.0f} GFLOP, takes {1e3 * floor:.1f} ms at the rate of "
            f"large matrix products, {found['matrix_gflop_per_s'] / 1e3:.1f} TFLOP/s."
        )
    whole = sum(found["parts_s"].values()) or 1.0
    shares = [(name, f"{1e3 * seconds:.2f}", f"{seconds / whole:.0%}") for name, seconds in found["parts_s"].items()]
    parts += [" ".join(said), _table(("part, each waited for", "ms", "share"), shares)]
    for key, title in (("operators", "operator"), ("kernels", "kernel")):
        rows = [(f"`{name}`", f"{calls:.0f}", f"{1e3 * seconds:.2f}") for name, calls, seconds in found.get(key, [])]
        if rows:
            parts.append(_table((title, "calls in a step", "ms in a step"), rows))
    return parts


def _graphs(cell: Mapping[str, Any] | None) -> list[str]:
    if cell is None or "steps" not in cell["figures"]:
        return []
    found = cell["figures"]
    rows = [
        (kind, _spread(row), f"{found['ratio_to_plain'][kind]:.3f}", _small_number(found["losses"][kind], 6))
        for kind, row in found["steps"].items()
    ]
    head = ("replayed by CUDA graphs", "steps/s", "time, ratio to plain", "first loss")
    return [f"## CUDA graphs ({found['precision']}, propagated labels, bare steps)", _table(head, rows)]


def _feeding(cells: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    found = cells.get("loading", {"figures": {}})["figures"]
    if "loader" in found:
        rows = [(workers, f"{rate:.0f}") for workers, rate in found["loader"].items()]
        parts += ["## Images", _table(("loader processes", "images/s"), rows)]
    needed = summary.get("needed_images_per_s")
    if needed is not None and "loader" in found:
        enough = summary.get("enough_workers")
        fits = "No number of processes that was tried gives" if enough is None else f"{enough} loader processes give"
        parts.append(f"The fastest steps take in {needed:.0f} images/s. {fits} as many.")
    if "fed" in found:
        fed = found["fed"]
        parts.append(
            f"Fed by {fed['workers']} processes, training ({found['precision']}) makes {_rate(fed['step_s'])}, and "
            f"waits for images {fed['wait_share']:.0%} of the time."
        )
    labelled = cells.get("labelling", {"figures": {}})["figures"]
    if labelled:
        outputs = ", ".join(labelled["outputs"])
        parts.append(f"The label stage writes {labelled['images_per_s']:.1f} images/s ({outputs}; float32).")
    return parts


def _missing(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"- {cell['name']}: {cell['status']}, {cell['reason']}" for cell in cells if cell["status"] != "done"]
    remarks = [f"- {cell['name']}: {remark}" for cell in cells for remark in cell["remarks"]]
    parts = []
    if lines:
        parts += ["## Not measured, or not to the end", "\n".join(lines)]
    if remarks:
        parts += ["## Warnings", "\n".join(remarks)]
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rate(seconds: float) -> str:
    return f"{1 / seconds:.2f} steps/s"


def _spread(row: Mapping[str, Any]) -> str:
    first, third = row["quartiles_s"]
    return f"{1 / row['step_s']:.2f} ({1 / third:.2f} to {1 / first:.2f})"


def _number(value: Any, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def _unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{_number(value)} {unit}"


def _small_number(value: Any, digits: int = 2) -> str:
    """A number that may be tiny, or the text that stands for one that is not finite."""
    return f"{value:.{digits}g}" if isinstance(value, (int, float)) else str(value)
