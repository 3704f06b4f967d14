"""Fetches llama.cpp's conversion scripts from the pinned source distribution of llama-cpp-python on the package index.

`python llama_cpp.py DIR` creates the folder DIR. It needs no other module of this repository, so that the image of the
trainer is built with it too. pip reads the metadata of a source distribution with the build backend, which is pinned
as well.
"""

import compileall
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"
_SOURCE = f"""
llama-cpp-python=={VERSION} --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
"""
_BUILD_BACKEND = """
packaging==26.4 --hash=sha256:81383611a09c1bc0b08b76e0fd5829d7c6824c65b27a6aee339da133f4233ea2
pathspec==1.1.1 --hash=sha256:a00ce642f577bf7f473932318056212bc4f8bfdf53128c78bbd5af0b9b20b189
scikit-build-core==1.1.2 --hash=sha256:7f4f959a467692db50bdd1ea7ce1507f2c7972e6023b753ee302d169bc4cec85
"""
_ROOT = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
_PARTS = ("LICENSE", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/")


def fetch_converters(target: Path) -> None:
    """Create the folder `target` with the scripts, their license, and the library `gguf-py`. Raises
    `CalledProcessError` if pip fails or finds another digest."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _extract(_download(folder), partial)
    compileall.compile_dir(partial, quiet=1)  # where the scripts run, the folder is read-only
    partial.rename(target)


def _download(folder: Path) -> Path:
    """Download the source distribution into `folder` and return its path."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip: list[str | Path] = [folder / "venv" / "bin" / "python", "-m", "pip"]
    for name, text in (("backend", _BUILD_BACKEND), ("source", _SOURCE)):
        (folder / name).write_text(text)
    options = ["--quiet", "--require-hashes", "--no-deps", "--no-cache-dir"]
    subprocess.run([*pip, "install", *options, "--only-binary=:all:", "-r", folder / "backend"], check=True)
    download = [*pip, "download", *options, "--no-binary=:all:", "--no-build-isolation", "--dest", folder / "source.d"]
    # The build backend reads the metadata without CMake, which the machine may lack.
    environment = {**os.environ, "SKBUILD_WHEEL_CMAKE": "false"}
    subprocess.run([*download, "-r", folder / "source"], check=True, env=environment)
    return next((folder / "source.d").iterdir())


def _extract(archive: Path, target: Path) -> None:
    """Write the files that are needed. Debian's Python has no filters for `TarFile.extract`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(_ROOT)
            if member.isfile() and name != member.name and name.startswith(_PARTS) and ".." not in name.split("/"):
                content = tar.extractfile(member)
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read() if content else b"")


if __name__ == "__main__":
    fetch_converters(Path(sys.argv[1]))
