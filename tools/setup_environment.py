"""Make the virtual environment: says what it will download before it does. Standard library only."""

import argparse
import ctypes.util
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_PACKAGES = {"libgomp1": lambda: ctypes.util.find_library("gomp") is not None}


def main() -> None:
    """Create the environment and install the project with its development extras."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--venv", type=Path, required=True)
    venv = arguments.parse_args().venv
    if sys.version_info < (3, 11) or sys.version_info >= (3, 14):
        sys.exit(
            f"Burnish needs Python 3.11 to 3.13; {sys.executable} is {sys.version.split()[0]}. Use: make PYTHON=python3.12"
        )
    missing = [name for name, present in SYSTEM_PACKAGES.items() if not present()]
    if missing:
        sys.exit(f"missing system packages; run: sudo apt-get install -y {' '.join(missing)}")
    if not (venv / "bin" / "python").exists():
        print(f"making {venv}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    if not installed(venv, "torch"):
        install_torch(pip)
    print("installing Burnish and what its tests need (about 400 MB from PyPI, less what pip has cached)", flush=True)
    subprocess.run(
        [*pip, "install", "-q", "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[dev]"], check=True, cwd=ROOT
    )


def installed(venv: Path, package: str) -> bool:
    """Tell whether a package lies in the environment."""
    return any(venv.glob(f"lib/python3*/site-packages/{package}/__init__.py"))


def install_torch(pip: list[str]) -> None:
    """Install torch: a CPU build where there is no NVIDIA driver and the index can be reached."""
    command = [*pip, "install", "-q", "-c", str(ROOT / "constraints.txt"), "torch"]
    index = os.environ.get("TORCH_INDEX", "")
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        print("installing torch with CUDA: an NVIDIA driver is here (about 3 GB)", flush=True)
    elif index and reachable(index):
        print(f"installing torch, the CPU build from {index} (about 200 MB)", flush=True)
        command += ["--extra-index-url", index]
    else:
        print(
            "installing torch from the default index (about 200 MB for a CPU build, up to 3 GB where only CUDA builds are offered;",
            end=" ",
        )
        print("TORCH_INDEX names an index with CPU builds)", flush=True)
    subprocess.run(command, check=True)


def reachable(url: str) -> bool:
    """Tell whether the index answers within three seconds."""
    if not url.startswith("https://"):
        return False
    try:
        with urllib.request.urlopen(url + "/torch/", timeout=3) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main()
