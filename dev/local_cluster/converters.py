"""The conversion scripts of llama.cpp in the cache, and llama.cpp itself, for tests and workstations."""

import sys
from pathlib import Path

from local_cluster import cache, llama_cpp, paths, shell
from local_cluster.console import log_step


def ensure_converters() -> Path:
    """Return the folder of the scripts. They are downloaded once per machine, with their digest checked."""
    target = paths.get_cache_folder() / f"llama-cpp-{llama_cpp.VERSION}"
    with cache.lock("llama-cpp"):
        if not target.exists():
            llama_cpp.fetch_converters(target)
    return target


def ensure_llama_cpp() -> Path:
    """Return the Python of an environment with llama-cpp-python, which is compiled once per machine: 10 minutes."""
    target = paths.get_cache_folder() / f"llama-cpp-python-{llama_cpp.VERSION}"
    log = paths.get_logs_folder() / "llama-cpp-python.log"
    with cache.lock("llama-cpp-python"):
        if not target.exists():
            with log_step("compiling llama-cpp-python", log), cache.replace_folder(target) as partial:
                shell.run([sys.executable, "-m", "venv", partial], log)
                options = ["--no-binary=llama-cpp-python", f"llama-cpp-python=={llama_cpp.VERSION}"]
                shell.run([partial / "bin" / "python", "-m", "pip", "install", *options], log)
    return target / "bin" / "python"
