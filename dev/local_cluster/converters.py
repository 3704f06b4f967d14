"""The conversion scripts of llama.cpp in the cache, for tests and for `finetune-trainer export` on a workstation."""

from pathlib import Path

from local_cluster import cache, llama_cpp, paths


def ensure_converters() -> Path:
    """Return the folder of the scripts. They are downloaded once per machine, with their digest checked."""
    target = paths.get_cache_folder() / f"llama-cpp-{llama_cpp.VERSION}"
    with cache.lock("llama-cpp"):
        if not target.exists():
            llama_cpp.fetch_converters(target)
    return target
