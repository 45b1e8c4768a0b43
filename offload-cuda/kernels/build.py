#!/usr/bin/env python3
"""Makes the PTX files in offload-cuda/src/kernels and examples/support from the CUDA source beside them, and the
codebooks' part of that.

usage: build.py            writes the files
       build.py --check    makes them elsewhere, compares, and assembles them for every architecture they serve
       build.py --fetch    only installs the compilers, where they are not there yet

Needs no GPU and no CUDA toolkit: the compilers come from PyPI, pinned, into a folder of their own in the user's cache
(OFFLOAD_KERNEL_TOOLS names another). NVRTC 12.0 makes PTX 8.0, which drivers since 525 take.
"""

import argparse
import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import venv

NVRTC = "nvidia-cuda-nvrtc-cu12==12.0.140"
PTXAS = "nvidia-cuda-nvcc==13.0.88"
ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "offload-cuda" / "src" / "kernels"
GRIDS = ROOT / "offload-core" / "src" / "decode" / "grids.rs"
# Source, and by virtual architecture what its PTX is assembled for.
MODULES = {
    SOURCES / "decode.cu": {75: [75], 80: [80, 86, 89, 90, 100, 120]},
    ROOT / "examples" / "support" / "matrix.cu": {75: [75, 80, 86, 89, 90, 100, 120]},
}
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


CODEBOOKS_HEAD = """\
// Codebooks of the i-quants, made by offload-cuda/kernels/build.py from offload-core/src/decode/grids.rs: each row
// packed into 16 bits, its first number in the lowest. They stay in the L1 cache, 4 KiB at most; `__constant__` memory
// would serve one address at a time.
//
"""

CODEBOOKS_MACROS = """
#pragma once

// On the device, on the host, or on both where one program runs there and here.
#if defined(__CUDACC_RTC__)
#define CODEBOOK(NAME, ROWS, ...) __device__ const unsigned short NAME##_ON_DEVICE[ROWS] = {__VA_ARGS__};
#elif defined(__CUDACC__)
#define CODEBOOK(NAME, ROWS, ...) \\
    __device__ const unsigned short NAME##_ON_DEVICE[ROWS] = {__VA_ARGS__}; \\
    static const unsigned short NAME##_ON_HOST[ROWS] = {__VA_ARGS__};
#else
#define CODEBOOK(NAME, ROWS, ...) static const unsigned short NAME##_ON_HOST[ROWS] = {__VA_ARGS__};
#endif

#if defined(__CUDA_ARCH__)
#define CODEBOOK_ROW(NAME, INDEX) ((unsigned)__ldg(NAME##_ON_DEVICE + (INDEX)))
#else
#define CODEBOOK_ROW(NAME, INDEX) ((unsigned)NAME##_ON_HOST[INDEX])
#endif
"""


def codebooks():
    """codebooks.cuh: the tables of the reference decoder, with the licence they came under."""
    rust = GRIDS.read_text()
    notice = [line[4:].rstrip() for line in rust.splitlines() if line.startswith("//! >")]
    text = CODEBOOKS_HEAD + "".join(f"// {line}".rstrip() + "\n" for line in notice) + CODEBOOKS_MACROS
    tables = re.findall(r"/// (.*)\npub\(super\) const (\w+): \[u16; (\d+)\] = \[([^\]]*)\];", rust)
    for comment, name, rows, values in tables:
        lines = [line.strip() for line in values.strip().splitlines()]
        body = "\n".join(f"    {line}" for line in lines).rstrip(",")
        text += f"\n// {comment}\nCODEBOOK({name}, {rows},\n{body})\n"
    return text.encode()


class Nvrtc:
    """The run-time compiler, called through its C interface."""

    def __init__(self):
        library = tools(NVRTC) / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
        self.nvrtc = ctypes.CDLL(str(library))

    def call(self, name, *arguments):
        status = getattr(self.nvrtc, name)(*arguments)
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
        status = self.nvrtc.nvrtcCompileProgram(program, len(options), array)
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
    parser.add_argument("--fetch", action="store_true", help="install the compilers and do nothing else")
    arguments = parser.parse_args()
    if arguments.fetch:
        try:
            for package in (NVRTC, PTXAS):
                tools(package)
        except subprocess.CalledProcessError as error:
            sys.exit(f"not installed: {error}")
        return
    check = arguments.check
    nvrtc = Nvrtc()
    stale = []
    books = SOURCES / "codebooks.cuh"
    if not check:
        books.write_bytes(codebooks())
    elif books.read_bytes() != codebooks():
        stale.append(books.name)
    for source, targets in MODULES.items():
        for arch, machines in targets.items():
            ptx = nvrtc.compile(source, arch)
            path = source.with_name(f"{source.stem}_{arch}.ptx")
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
