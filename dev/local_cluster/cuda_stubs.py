"""Replace the CUDA libraries that torch loads at its start, but does not use on a CPU, by one stub library.

torch's wheels on PyPI are linked to 3 GB of CUDA libraries, and PyTorch publishes wheels without CUDA only in an index
of its own. Dockerfile.trainer runs this script with ACCELERATOR=cpu, after it has installed torch without those
libraries. The stub library defines the symbols that torch imports from them; a call of any of them ends the process.
The libraries cudart and cupti are called on the CPU too, so they stay.
"""

import re
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path

_STUB = "libcuda_stubs.so"
_REPLACED_LIBRARY = re.compile(
    r"NEEDED.*\[(lib(?:cublas|cublasLt|cudnn|cufft|cufile|curand|cusolver|cusparse|cusparseLt|nccl|nvrtc|nvshmem_host)\.so\.\d+)\]"
)
_UNDEFINED_SYMBOL = re.compile(r" UND (\w+)(?:@(\S+))?")
_UNVERSIONED_SYMBOL = re.compile(r"(nccl|curand|cusparseLt|cuFile)[A-Z]")
_UNVERSIONED = "UNVERSIONED"
_FAIL_SOURCE = r"""
#include <stdlib.h>
#include <unistd.h>
static void fail(void) {
  static const char message[] = "this image has no CUDA libraries: use an image that was built with ACCELERATOR=cuda\n";
  write(2, message, sizeof message - 1);
  abort();
}
"""


def find_symbols(dump: str) -> dict[str, set[str]]:
    """Return the names of the undefined symbols of the replaced libraries, by their version, from readelf's output."""
    versions = {*_REPLACED_LIBRARY.findall(dump), "NVSHMEM"}
    symbols = defaultdict(set)
    for name, version in _UNDEFINED_SYMBOL.findall(dump):
        if version in versions or (not version and _UNVERSIONED_SYMBOL.match(name)):
            symbols[version or _UNVERSIONED].add(name)
    return symbols


def render_source(symbols: dict[str, set[str]]) -> str:
    """Return C code in which every symbol is an alias of one function that ends the process."""
    names = sorted(set().union(*symbols.values()))
    return _FAIL_SOURCE + "".join(f'void {name}(void) __attribute__((alias("fail")));\n' for name in names)


def render_version_script(symbols: dict[str, set[str]]) -> str:
    """Return the linker's version script: the dynamic loader requires the version with which a symbol was linked."""
    return "".join(
        f"{version} {{ global: {'; '.join(sorted(names))}; }};\n" for version, names in sorted(symbols.items())
    )


def main() -> None:
    """Build the stub library in torch's folder, and link it there under the name of each replaced library."""
    folder = Path(sysconfig.get_path("purelib")) / "torch" / "lib"
    libraries = [str(file) for file in sorted(folder.glob("*.so*"))]
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", *libraries]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    symbols = find_symbols(dump)
    version_script = folder / "versions.map"
    version_script.write_text(render_version_script(symbols))
    compiler = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,--version-script={version_script}", "-x", "c", "-"]
    subprocess.run([*compiler, "-o", folder / _STUB], check=True, input=render_source(symbols), text=True)
    version_script.unlink()
    for library in set(_REPLACED_LIBRARY.findall(dump)):
        (folder / library).symlink_to(_STUB)


if __name__ == "__main__":
    main()
