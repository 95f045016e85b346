"""Packaging: pip install -e . (or -e .[test])."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
REQUIREMENTS = [
    line
    for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "afa" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)
RECIPES = "configs/**/*.yaml"


class BuildWithRecipes(build_py):
    """Puts the recipes into the package, as ``afa/recipes``. An editable installation reads ``configs`` itself."""

    def run(self) -> None:
        """Build all else, then copy the recipes."""
        super().run()
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "afa", "recipes"), ignore_errors=True)  # of an earlier build
            for source, target in self._recipes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """All files that the build makes."""
        recipes = [] if self.editable_mode else [str(target) for _, target in self._recipes()]
        return [*super().get_outputs(include_bytecode), *recipes]

    def _recipes(self) -> list[tuple[Path, Path]]:
        """Each recipe, and where it goes."""
        folder = Path(self.build_lib, "afa", "recipes")
        return [(path, folder / path.relative_to(HERE / "configs")) for path in sorted(HERE.glob(RECIPES))]


setup(
    name="afa",
    version=VERSION,
    description="Weakly supervised semantic segmentation from image-level labels: AFA, PSA and EDAM",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["weakly supervised learning", "semantic segmentation", "class activation maps", "computer vision"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["afa", "afa.*"]),
    package_data={"afa": ["py.typed"], "afa.report": ["page.html", "page.css", "page.js"]},
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["afa=afa.commands.main:run"]},
    python_requires=">=3.11",
    install_requires=REQUIREMENTS,
    extras_require={
        "test": [
            "pytest>=8",
            "scipy>=1.13",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "mypy>=1.11",
            "transformers>=4.45",
            "setuptools>=77",
            "types-PyYAML",
            "types-tqdm",
            "onnx>=1.16",
            "onnxruntime",
        ],
        "benchmark": ["pydensecrf2"],
        "saliency": ["onnxruntime"],
        "onnx": ["onnx>=1.16", "onnxruntime"],
        "browser": ["playwright>=1.45"],
    },
)
