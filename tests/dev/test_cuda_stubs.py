"""Tests of the stub library that replaces CUDA in the trainer's image for CPUs."""

import re
import tomllib
from pathlib import Path

from local_cluster import cuda_stubs, paths

# Output of `readelf --wide --dynamic --dyn-syms` for a library of torch, shortened.
DUMP = """
 0x0000000000000001 (NEEDED)             Shared library: [libcublas.so.13]
 0x0000000000000001 (NEEDED)             Shared library: [libnccl.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libcudart.so.13]
 0x0000000000000001 (NEEDED)             Shared library: [libc10.so]
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cublasCreate_v2@libcublas.so.13 (3)
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cudaMalloc@libcudart.so.13 (4)
     3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND nvshmem_my_pe@NVSHMEM (5)
     4: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND ncclAllReduce
     5: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _ZN3c105ErrorD1Ev
     6: 0000000000001000    16 FUNC    GLOBAL DEFAULT   12 ncclDefinedByTorch
"""
KEPT = {"nvidia-cuda-cupti", "nvidia-cuda-runtime"}  # torch calls them on the CPU too


def test_find_symbols_of_replaced_libraries_only() -> None:
    assert cuda_stubs.find_symbols(DUMP) == {
        "libcublas.so.13": {"cublasCreate_v2"},
        "NVSHMEM": {"nvshmem_my_pe"},
        "UNVERSIONED": {"ncclAllReduce"},
    }


def test_version_script_has_each_symbol_under_its_version() -> None:
    script = cuda_stubs.render_version_script({"libb.so": {"second", "first"}, "NVSHMEM": {"third"}})
    assert script == "NVSHMEM { global: third; };\nlibb.so { global: first; second; };\n"


def test_dockerfile_leaves_out_all_cuda_packages_of_torch_but_two() -> None:
    lock = tomllib.loads((paths.REPOSITORY / "uv.lock").read_text())
    locked = {package["name"] for package in lock["package"] if re.match("nvidia-|triton$|cuda-", package["name"])}
    dockerfile = Path(paths.REPOSITORY / "Dockerfile.trainer").read_text()
    (listed,) = re.findall(r"--no-emit-package %s ' ([^)]*)\)", dockerfile)
    left_out = set(listed.replace("\\\n", " ").split())
    assert left_out <= locked
    assert locked - left_out == {*KEPT, "cuda-toolkit", "nvidia-ml-py"}  # the last two contain no libraries
