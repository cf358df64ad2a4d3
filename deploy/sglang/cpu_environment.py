"""Make an environment in which SGLang serves small models on a CPU, for tests.

    python deploy/sglang/cpu_environment.py FOLDER [--python PYTHON]

SGLang has no release for CPUs. Its own code runs there nearly whole; what is missing are two
pieces that it imports and that Llama-type models never call on a CPU: its CUDA kernels, and the
compiled operators of torchvision's CUDA build. Both are replaced by names that say so when they
are called. Two more are replaced by what does the same on a CPU: pinned memory, which LoRA asks
for, by plain memory, and the kernel that applies xgrammar's masks by xgrammar's own.

2.3 GB on disk; 500 MB are downloaded. pip must be able to find the CPU build of torch: where the
package index of this machine does not have it, set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements-cpu.txt"
TORCH = "torch==2.13.0+cpu"  # apart: its hash depends on who built it
PYTHON_VERSION = "3.11"  # what the requirements are locked for
INSTALL_LIMIT_S = 1_800.0
STAMP = "aios-sglang-cpu"  # written last: a folder without it is half made

KERNEL_NAMES = '''"""The names of SGLang's CUDA kernels, without the kernels."""

__version__ = "0.4.5"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU")

    return absent
'''
START_MODULE = "aios_sglang_cpu"
START = '''"""Runs when this environment's Python starts: SGLang on a CPU."""

import functools
import importlib.abc
import importlib.util
import os
import sys

import torch

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
# Else the first answer that is held to a form waits half a minute for a C++ compiler.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# torchvision registers shapes for these when it is imported; its own library needs CUDA.
_SHAPE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + _SHAPE)


def _unpinned(make):
    """Make a tensor in plain memory: there is no GPU for which it could be pinned."""

    @functools.wraps(make)
    def make_unpinned(*args, pin_memory=False, **values):
        return make(*args, **values)

    return make_unpinned


for _name in ("arange", "empty", "full", "tensor", "zeros"):
    setattr(torch, _name, _unpinned(getattr(torch, _name)))
torch.Tensor.pin_memory = lambda tensor, *_: tensor


class _MaskOnCpu(importlib.abc.MetaPathFinder):
    """SGLang applies xgrammar's masks by kernels for GPUs alone; xgrammar has one for CPUs."""

    def find_spec(self, name, path, target=None):
        if name != "sglang.srt.constrained.xgrammar_backend":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            from xgrammar import apply_token_bitmask_inplace

            def apply_vocab_mask(logits, vocab_mask):
                apply_token_bitmask_inplace(logits, vocab_mask)

            for owner in (module.XGrammarGrammar, module.XGrammarGrammarBackend):
                owner.apply_vocab_mask = staticmethod(apply_vocab_mask)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _MaskOnCpu())
'''


def main() -> int:
    """Make the environment; does nothing where it is whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable, help=f"a Python {PYTHON_VERSION}")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    wanted = "\n".join((TORCH, KERNEL_NAMES, START, REQUIREMENTS.read_text(encoding="utf-8")))
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        say(f"SGLang for the CPU is installed: {folder}")
        return 0
    stamp.unlink(missing_ok=True)
    check_version(options.python)
    run([options.python, "-I", "-m", "venv", "--clear", str(folder)])
    install(folder / "bin" / "python")
    packages = folder / "lib" / f"python{PYTHON_VERSION}" / "site-packages"
    (packages / "sgl_kernel").mkdir()
    (packages / "sgl_kernel" / "__init__.py").write_text(KERNEL_NAMES, encoding="utf-8")
    (packages / f"{START_MODULE}.py").write_text(START, encoding="utf-8")
    (packages / f"{START_MODULE}.pth").write_text(f"import {START_MODULE}\n", encoding="utf-8")
    run([str(folder / "bin" / "python"), "-c", "import sglang.launch_server"])
    stamp.write_text(wanted, encoding="utf-8")
    say(f"installed: {folder}")
    return 0


def install(python: Path) -> None:
    """Install the locked packages, by their hashes, and torch."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--only-binary=:all:", "--no-compile"]
    say("installing sglang 0.5.17 and what it needs (one to three minutes)")
    run([*pip, *alone, "--require-hashes", "-r", str(REQUIREMENTS)])
    run([*pip, *alone, TORCH])
    # Halves the start of every server process.
    packages = [str(path) for path in python.parents[1].glob("lib/*/site-packages")]
    run([str(python), "-m", "compileall", "-q", "-j", "0", *packages], check=False)


def check_version(python: str) -> None:
    """End with a clear word where this is another Python than the lock is for."""
    found = subprocess.run(
        [python, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.strip()
    if found != PYTHON_VERSION:
        sys.exit(f"{python} is Python {found}; give --python a Python {PYTHON_VERSION}")


def run(command: list[str], *, check: bool = True) -> None:
    """Run a command; end with what it said where it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
    )
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        sys.exit(f"{' '.join(command[:6])} ... failed:\n{said[-2_000:]}")


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
