"""The command ``afa`` and the scripts of ``tools/``: what all of them have in common."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from run_tool import TOOLS, RunTool

from afa.commands import arguments as grammar
from afa.commands.arguments import CommandParser, is_setting
from afa.commands.main import main
from afa.commands.table import COMMANDS, PREPARATIONS
from afa.config.recipes import recipe_folder, recipe_names
from afa.errors import UserError

CALLS = [[name] for name in COMMANDS if name != "prepare"] + [["prepare", name] for name in PREPARATIONS]
HEAVY = {"torch", "torchvision", "timm", "mmcv", "cv2", "numpy", "scipy", "PIL", "imageio", "tensorboard"}
# Runs the scripts named on its standard input, each with --help and with a mistake, and prints what they imported.
READER = """
import contextlib, io, json, runpy, sys
from afa.errors import UserError
heavy, scripts = json.loads(sys.stdin.read())
found = {}
for script in scripts:
    sys.argv = [script]
    main = runpy.run_path(script)["main"]
    for mistake in (["--help"], ["--no-such-option"]):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit, UserError):
            main(mistake)
            raise AssertionError(script)
    found[script] = sorted(set(heavy) & {name.partition(".")[0] for name in sys.modules})
print(json.dumps(found))
"""


def test_arguments_are_read_before_anything_heavy_is_imported() -> None:
    scripts = [str(path) for path in sorted(TOOLS.glob("*.py"))]
    given = json.dumps([sorted(HEAVY), scripts])
    done = subprocess.run([sys.executable, "-c", READER], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {script: [] for script in scripts}


def test_the_table_names_every_command_and_each_help_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", listed, re.MULTILINE)
    for call in CALLS:
        with pytest.raises(SystemExit) as stop:
            main([*call, "--help"])
        shown = capsys.readouterr().out
        assert stop.value.code == 0 and shown.startswith(f"usage: afa {' '.join(call)} ")
        for earlier in ("--out ", "--set ", "--json ", "--count ", "--flip"):
            assert earlier not in shown, f"{call}: {earlier}"


def test_the_commands_that_readme_docs_and_recipes_show_have_these_options(capsys: pytest.CaptureFixture[str]) -> None:
    root = TOOLS.parent
    groups = "(?:prepare|export|benchmark) [a-z]+"
    shown = re.compile(rf"\bafa ({groups}|{'|'.join(COMMANDS)})(?= |$|`)([^`#\n]*)", re.MULTILINE)
    helps: dict[str, str] = {}
    for page in [root / "README.md", *sorted(root.glob("docs/*.md")), *sorted(root.glob("configs/**/*.yaml"))]:
        for call, rest in shown.findall(page.read_text(encoding="utf-8")):
            if call not in helps:
                with pytest.raises(SystemExit):
                    main([*call.split(), "--help"])
                helps[call] = capsys.readouterr().out
            for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest):
                assert re.search(rf"{option}(?![\w-])", helps[call]), f"{page.name}: afa {call} {option}"
    assert {"train", "prepare voc", "export onnx", "predict"} <= set(helps)


def test_every_script_is_a_command() -> None:
    modules = {command.module for table in (COMMANDS, PREPARATIONS) for command in table.values()}
    for script in TOOLS.glob("*.py"):
        if script.stem != "fidelity":  # needs the tests, which the package does not bring
            found = re.search(r"^from (afa\.commands\.\w+) import main$", script.read_text(), re.MULTILINE)
            assert found and found[1] in modules, script


def test_the_headers_of_scripts_use_todays_words() -> None:
    earlier = re.compile(r"(?<!\S)--(out|json|count|flip|no-flip|classes|batch|set)(?![\w-])")
    for folder, pattern in ((TOOLS, "*.py"), (TOOLS.parent / "launch", "*.sh")):
        for script in folder.glob(pattern):
            assert not earlier.search(script.read_text(encoding="utf-8")), script


def test_a_recipe_says_its_purpose_in_its_first_line() -> None:
    for name in recipe_names():
        first = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        assert first.endswith("."), f"{name}: 'afa list' shows the first line alone: {first}"


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_mistaken_option_is_one_line_that_names_the_nearest(call: list[str]) -> None:
    if call == ["benchmark"]:
        call = ["benchmark", "step"]
    with pytest.raises(UserError, match="--hulp is no option") as found:
        main([*call, "--hulp=3"])
    assert f"'afa {' '.join(call)} --help'" in str(found.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "afa: there is no command 'trian'; did you mean 'train'?"),
        (["prepare", "cocoa"], "afa prepare: there is no command 'cocoa'; did you mean 'coco'?"),
        (["benchmark", "stepp"], "'stepp' is no measurement; did you mean 'step'?"),
        (["train"], "the following arguments are required: CONFIG "),
        (["train", "train.steps=3"], "the following arguments are required: CONFIG "),
        (["eval"], "the following arguments are required: RUN "),
        (["predict"], "the following arguments are required: RUN, --output "),
        (["convert"], "the following arguments are required: SOURCE, --format "),
        (["export", "onnx"], "the following arguments are required: RUN, --output "),
        (["label", "run"], "the following arguments are required: --output "),
        (["predict", "--output", "out"], "the following arguments are required: RUN "),
        (["score", "masks"], "the following arguments are required: FOLDER "),
        (["convert", "run", "--format", "afa"], "the following arguments are required: --output PLACE "),
        (["prepare", "labels", "--masks", "m"], "the following arguments are required: --output FILE "),
        (["prepare", "shapes"], "the following arguments are required: --output FOLDER "),
        (["prepare", "shapes", "a", "--output", "b"], "'a' is one argument too many "),
        (["train", "demo", "more"], "'more' is one argument too many: settings have the form key=value"),
        (["eval", "run", "--ouput", "x"], "--ouput is no option; did you mean --output?"),
        (["eval", "run", "--limit", "few"], "argument --limit: invalid int value: 'few'"),
        (["eval", "nowhere"], "nowhere: no such file or folder"),
        (["predict", "nowhere", "photos", "--output", "out"], "nowhere: no such file or folder"),
        (["convert", "nowhere", "--output", "x.pth", "--format", "released"], "nowhere: no such file or folder"),
        (["train", "demo", "train.steps=3"], "train.steps=3 ends before the decoder is trained"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_name_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as found:
        main(arguments)
    assert str(found.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def parsed(arguments: list[str], *, settings: bool = True) -> dict[str, object]:
    parser = CommandParser("Nothing.", settings=settings)
    parser.add_argument("images", nargs="*", default=[])
    grammar.add_network_arguments(parser)
    grammar.add_batch_argument(parser)
    grammar.add_loading_arguments(parser)
    parser.add_argument("--output")
    parser.add_argument("--class-names")
    parser.add_argument("--outputs", nargs="+")
    return vars(parser.read(["run", *arguments]))


EARLIER = {
    "--out x": "--output x",
    "--out=x": "--output=x",
    "--json x": "--output x",
    "--count 3": "--limit 3",
    "--flip": "--mirror",
    "--no-flip": "--no-mirror",
    "--batch 2": "--batch-size 2",
    "--classes c.txt": "--class-names c.txt",
    "--set test.scales=[1] cam.low=0.2": "test.scales=[1] cam.low=0.2",
    "--set=cam.low=0.2": "cam.low=0.2",
}


@pytest.mark.parametrize("earlier", EARLIER)
def test_words_of_before_mean_what_todays_do(earlier: str) -> None:
    assert parsed(earlier.split()) == parsed(EARLIER[earlier].split())


def test_settings_stand_anywhere_and_a_file_of_that_name_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["a.b=1", "x.jpg", "--output", "c.d=2", "--outputs", "cam", "e=3", "--scales", "1", "f.g=[1, 2]", "h=i.jpg"]
    found = parsed(words)
    assert found["settings"] == ["a.b=1", "e=3", "f.g=[1, 2]", "h=i.jpg"]
    assert (found["output"], found["outputs"], found["scales"]) == ("c.d=2", ["cam"], ["1"])
    (tmp_path / "h=i.jpg").touch()
    (tmp_path / "a.b=1").mkdir()
    found = parsed(words)
    assert found["settings"] == ["e=3", "f.g=[1, 2]"]
    assert not is_setting("./e=3") and not is_setting("=3") and not is_setting("photo.jpg")


def test_a_file_that_begins_with_a_dash_is_named_behind_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-x.jpg").touch()
    with pytest.raises(UserError, match=r"-x\.jpg is no option: write \./-x\.jpg for the file of that name"):
        parsed(["-x.jpg"])
    assert "-x.jpg" in str(parsed(["--", "-x.jpg"]))


def test_a_device_that_is_not_there_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "run").mkdir()  # holds no checkpoint, which would be the next mistake
    for name in ("eval", "label", "sheet", "predict"):
        output = ["--output", str(tmp_path / ("out.png" if name == "sheet" else "out"))]
        images = [str(tmp_path / "photo.jpg")] if name == "predict" else []
        with pytest.raises(UserError, match="=cuda, but PyTorch sees no GPU"):
            main([name, str(tmp_path / "run"), *images, *output, "--device", "cuda"])
    with pytest.raises(UserError, match="=cuda, but PyTorch sees no GPU"):
        main(["train", "demo", "--device", "cuda", f"dataset.root={tmp_path / 'nothing'}"])


def test_lists_and_facts_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == main(["list"]) == main(["info"]) == 0
    shown = capsys.readouterr().out
    for words in ("afa 0.", "psa_affinity", "psa/1_cam", "afa: propagated_cam", "torch ", "cores ", "MPS "):
        assert words in shown


@pytest.mark.parametrize(
    "command",
    [
        ("benchmark.py", "par", "--output", "PLACE.json"),
        ("check_data.py", "nowhere.yaml", "--output", "PLACE.json"),
        ("contact_sheet.py", "nowhere", "--output", "PLACE.png"),
        ("convert_weights.py", "nowhere", "--output", "PLACE.safetensors", "--format", "afa"),
        ("convert_weights.py", "nowhere", "--output", "PLACE", "--format", "huggingface"),
        ("eval.py", "nowhere", "--output", "PLACE.json"),
        ("eval.py", "PLACE"),
        ("label.py", "nowhere", "--output", "PLACE"),
        ("make_labels.py", "--masks", "nowhere", "--output", "PLACE.json"),
        ("make_saliency.py", "nowhere", "--output", "PLACE"),
        ("report.py", "nowhere", "--output", "PLACE.html"),
        ("score.py", "masks", "nowhere", "--config", "nowhere.yaml", "--output", "PLACE.json"),
        ("score.py", "maps", "nowhere", "--config", "nowhere.yaml", "--csv", "PLACE.csv"),
        ("score.py", "maps", "nowhere", "--config", "nowhere.yaml", "--plot", "PLACE.svg"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_the_work(
    command: tuple[str, ...], tmp_path: Path, run_tool: RunTool
) -> None:
    """Even the work's inputs, which are not there, have not been looked for."""
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file" / "result", tmp_path / "file" / "new" / "result", Path("/proc/result")):
        done = run_tool(*(word.replace("PLACE", str(place)) for word in command))
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert str(place.parent) in done.stderr and "cannot be written: " in done.stderr


def test_modules_of_the_table_have_a_main() -> None:
    for table in (COMMANDS, PREPARATIONS):
        for command in table.values():
            assert callable(import_module(command.module).main)


def test_what_looks_like_a_setting_and_was_meant_as_a_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(
        UserError, match=r"no image was named.*'x=1\.jpg' is read as a setting, as no file has that name"
    ):
        main(["predict", "run", "x=1.jpg", "--output", "out"])
