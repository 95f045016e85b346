"""Packaging: pip install -e . (or -e .[test])."""

from pathlib import Path

from setuptools import find_packages, setup

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

setup(
    name="afa",
    version=VERSION,
    description="AFA: end-to-end weakly-supervised semantic segmentation from image-level labels",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
    ],
    packages=find_packages(include=["afa", "afa.*"]),
    package_data={"afa.report": ["page.html", "page.css", "page.js"]},
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
