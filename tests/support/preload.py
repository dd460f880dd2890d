"""Imitates other file systems: a library that is preloaded into a new process changes what its calls do."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.root import ROOT

# Faults are read from the environment: FAULT_<call>=<errno>, or 0 for a call that succeeds and does nothing.
# FAULT_UNDER limits them to paths with this prefix.
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int applies(const char *name, const char *path) {
  const char *under = getenv("FAULT_UNDER");
  return getenv(name) && (!under || strncmp(path, under, strlen(under)) == 0);
}

static int fault(const char *name) {
  errno = atoi(getenv(name));
  return errno ? -1 : 0;
}

static int is_directory(const char *path) {
  struct stat status;
  return lstat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static const char *path_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX);
  path[length < 0 ? 0 : length] = 0;
  return path;
}

int fsync(int descriptor) {
  char path[PATH_MAX + 1];
  path_of(descriptor, path);
  const char *name = is_directory(path) ? "FAULT_fsync_directory" : "FAULT_fsync_file";
  if (applies(name, path)) return fault(name);
  return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
}

int rename(const char *from, const char *to) {
  const char *name = is_directory(from) ? "FAULT_rename_directory" : "FAULT_rename_file";
  if (applies(name, from)) return fault(name);
  return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}

int truncate64(const char *path, off_t length) {
  if (applies("FAULT_truncate", path)) return fault("FAULT_truncate");
  return ((int (*)(const char *, off_t))dlsym(RTLD_NEXT, "truncate64"))(path, length);
}

int flock(int descriptor, int operation) {
  char path[PATH_MAX + 1];
  if (applies("FAULT_flock", path_of(descriptor, path))) return fault("FAULT_flock");
  return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(descriptor, operation);
}
"""


def preloaded(faults: Mapping[str, int], under: Path | None = None) -> dict[str, str]:
    """Return the environment variables that give a new process a file system with faults. Skips without a C compiler.

    Args:
      faults: error numbers of fsync_file, fsync_directory, rename_file, rename_directory, truncate and flock. 0 makes
        the call succeed without doing anything.
      under: directory to which the faults are limited, as processes name it; None for all files.
    """
    variables = {"LD_PRELOAD": str(_library())} | {f"FAULT_{call}": str(number) for call, number in faults.items()}
    return variables if under is None else variables | {"FAULT_UNDER": str(under)}


def run_with_faults(program: str, directory: Path, faults: Mapping[str, int]) -> "subprocess.CompletedProcess[str]":
    """Run Python statements in a new process whose file system has faults under `directory`, the only argument."""
    return subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        cwd=ROOT,
        env={**os.environ, **preloaded(faults, under=directory)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@functools.cache
def _library() -> Path:
    """Compile the library. It is removed when the test process ends."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    source, library = directory / "faults.c", directory / "faults.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=120)
    return library
