#!/usr/bin/env python3
"""Makes the PTX files in offload-cuda/src/kernels from the CUDA source beside them.

usage: build.py            writes the PTX files
       build.py --check    makes them elsewhere, compares, and assembles them for every architecture they serve

Needs no GPU and no CUDA toolkit: the compilers come from PyPI, pinned, into a folder of their own in the user's cache
(OFFLOAD_KERNEL_TOOLS names another). NVRTC 12.0 makes PTX 8.0, which drivers since 525 take.
"""

import argparse
import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

NVRTC = "nvidia-cuda-nvrtc-cu12==12.0.140"
PTXAS = "nvidia-cuda-nvcc==13.0.88"
SOURCES = pathlib.Path(__file__).resolve().parent.parent / "src" / "kernels"
# Virtual architecture, and what its PTX is assembled for.
TARGETS = {75: [75], 80: [80, 86, 89, 90, 100, 120]}
MODULES = ["decode"]
# Results are compared bit for bit with the reference: nothing may be contracted, approximated or flushed.
OPTIONS = ["-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"]


def tools(*packages):
    """The site-packages folder of an environment that holds `packages`, made at the first use."""
    cache = os.environ.get("OFFLOAD_KERNEL_TOOLS") or pathlib.Path.home() / ".cache" / "offload-kernel-tools"
    name = "+".join(package.replace("==", "-") for package in packages)
    folder = pathlib.Path(cache) / name
    done = folder / "done"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, *packages], check=True)
        done.touch()
    return next(folder.glob("lib/python3*/site-packages"))


class Nvrtc:
    """The run-time compiler, called through its C interface."""

    def __init__(self):
        library = tools(NVRTC) / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
        self.library = ctypes.CDLL(str(library))

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} returned {status}")

    def text(self, program, what):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, text)
        return text.value

    def compile(self, source, arch):
        program = ctypes.c_void_p()
        code, name = source.read_bytes(), source.name.encode()
        self.call("nvrtcCreateProgram", ctypes.byref(program), code, name, 0, None, None)
        options = [*OPTIONS, f"--gpu-architecture=compute_{arch}", f"-I{SOURCES}"]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self.library.nvrtcCompileProgram(program, len(options), array)
        log = self.text(program, "ProgramLog").decode().strip()
        if status != 0 or log:
            sys.exit(f"{source}: {log}")
        ptx = self.text(program, "PTX")
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return ptx


def assemble(ptx, arch):
    """What ptxas says of the kernels in `ptx`: registers, spills, shared memory."""
    ptxas = tools(PTXAS) / "nvidia" / "cu13" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        command = [ptxas, "--verbose", f"--gpu-name=sm_{arch}", "--output-file", f"{folder}/cubin", ptx]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{ptx.name} does not assemble for sm_{arch}:\n{done.stderr}")
    facts = [line.split(":", 1)[-1].strip() for line in done.stderr.splitlines()]
    return "; ".join(fact for fact in facts if fact.startswith("Used") or "spill" in fact or "warning" in fact)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a committed file differs")
    check = parser.parse_args().check
    nvrtc = Nvrtc()
    stale = []
    for module in MODULES:
        for arch, machines in TARGETS.items():
            ptx = nvrtc.compile(SOURCES / f"{module}.cu", arch)
            path = SOURCES / f"{module}_{arch}.ptx"
            if not check:
                path.write_bytes(ptx)
                print(f"{path.name}: {len(ptx)} bytes")
                continue
            if not path.exists() or path.read_bytes() != ptx:
                stale.append(path.name)
            for machine in machines:
                print(f"{path.name} for sm_{machine}: {assemble(path, machine)}")
    if stale:
        sys.exit(f"not what the source makes: {', '.join(stale)}; run {sys.argv[0]}")


if __name__ == "__main__":
    main()
