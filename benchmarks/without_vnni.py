"""Run a benchmark in ONNX Runtime as on an x86 processor without VNNI and AVX-512, on one that has them.

    python benchmarks/without_vnni.py benchmarks/embedder_peers.py --only float "qdqpatch, linear-only"

ONNX Runtime chooses its kernels by what the instruction `cpuid` answers, and has no setting for less. So the
benchmark gets a copy of its library in which each `cpuid` is a breakpoint, and a handler that answers with
the bits of AVX-512 and VNNI cleared. The kernels are then those of AVX2, at the speed that this processor has
for them. It needs Linux on x86-64, and gcc and objdump. OpenVINO is left as it is.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "onnxruntime"
CPUID, BREAKPOINT = b"\x0f\xa2", b"\xcc\x90"

HANDLER = """
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

/* Of leaf 7: AVX-512 with all its parts, VNNI, and AMX. Of leaf 7.1: AVX-VNNI, and the narrower rest. */
static const unsigned EBX = 0xDC230000, ECX = 0x00005842, EDX = 0x03C0010C, EAX_1 = 0x00000030;

static void answer(int signal, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7 && part == 0) { b &= ~EBX; c &= ~ECX; d &= ~EDX; }
    if (leaf == 7 && part == 1) { a &= ~EAX_1; d = 0; }
    registers[REG_RAX] = a; registers[REG_RBX] = b; registers[REG_RCX] = c; registers[REG_RDX] = d;
}

__attribute__((constructor)) static void begin(void)
{
    struct sigaction action = { .sa_sigaction = answer, .sa_flags = SA_SIGINFO };
    sigaction(SIGTRAP, &action, 0);
}
"""
"""What is preloaded. A breakpoint is one byte, `cpuid` two: after it the program goes on at one that does
nothing."""


def lacking() -> str | None:
    """Return what this machine lacks for that, in words; None for nothing."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "it needs Linux on x86-64"
    missing = [tool for tool in ("gcc", "objdump") if shutil.which(tool) is None]
    if importlib.util.find_spec(PACKAGE) is None:
        missing.append(PACKAGE)
    return f"it needs {' and '.join(missing)}" if missing else None


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which ONNX Runtime takes the kernels of AVX2.

    Args:
        folder: Where its copy is put, and the library to preload.
    """
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, "lacking() says so"
    assert spec.origin is not None, "it is a package"
    copy = folder / PACKAGE
    shutil.copytree(Path(spec.origin).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (library,) = copy.glob("capi/onnxruntime_pybind11_state*.so")
    hide(library)
    handler = folder / "handler.so"
    compile_handler = ["gcc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(handler)]
    subprocess.run(compile_handler, input=HANDLER, text=True, check=True)
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "LD_PRELOAD": str(handler), "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def hide(library: Path) -> None:
    """Replace every `cpuid` of a library by a breakpoint."""
    code = bytearray(library.read_bytes())
    listing = subprocess.run(
        [
            "objdump",
            "--disassemble",
            "--file-offsets",
            "--prefix-addresses",
            "--no-show-raw-insn",
            str(library),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = 0
    for line in listing.stdout.splitlines():
        if line.rstrip().endswith("cpuid"):
            place = int(line.partition("File Offset: ")[2].partition(")")[0], 16)
            assert code[place : place + 2] == CPUID, "objdump says where it is"
            code[place : place + 2] = BREAKPOINT
            found += 1
    if not found:
        raise RuntimeError(f"{library.name} asks for no features of the processor: nothing can be hidden.")
    library.write_bytes(code)


def main() -> None:
    """Run what the arguments name."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
    elif (reason := lacking()) is not None:
        print(f"Skipped: {reason}.")
    else:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=environment(Path(folder)), check=False).returncode)


if __name__ == "__main__":
    main()
