"""Writes offload-core/src/decode/grids.rs from the codebooks of the PyPI package gguf.

    pip install gguf==0.19.0
    python offload-core/tests/data/make_grids.py > offload-core/src/decode/grids.rs
"""

from gguf import quants

TABLES = [
    ("IQ2_XXS", "256 rows of 8: 2-bit indices into 8, 25, 43."),
    ("IQ2_XS", "512 rows of 8: 2-bit indices into 8, 25, 43."),
    ("IQ2_S", "1024 rows of 8: 2-bit indices into 8, 25, 43."),
    ("IQ3_XXS", "256 rows of 4: indices, each in 4 bits, into 4, 12, 20, 28, 36, 44, 52, 62."),
    ("IQ3_S", "512 rows of 4: indices, each in 4 bits, into 1, 3, 5, 7, 9, 11, 13, 15."),
    ("IQ1_S", "2048 rows of 8: 2-bit indices into -1, 0, 1."),
]

print(
    """//! Codebooks of the i-quants: each row packed into a u16, its first number in the lowest bits.
//!
//! Made by `tests/data/make_grids.py` from the PyPI package gguf 0.19.0 (`gguf/quants.py`, part of llama.cpp):
//!
//! > MIT License. Copyright (c) 2023 Georgi Gerganov
//! >
//! > Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
//! > documentation files (the "Software"), to deal in the Software without restriction, including without limitation
//! > the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
//! > to permit persons to whom the Software is furnished to do so, subject to the following conditions:
//! >
//! > The above copyright notice and this permission notice shall be included in all copies or substantial portions of
//! > the Software.
//! >
//! > THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
//! > THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
//! > AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
//! > CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
//! > IN THE SOFTWARE."""
)
for name, doc in TABLES:
    packed = bytes.fromhex(getattr(quants, name).grid_hex.decode())
    rows = [packed[i] | packed[i + 1] << 8 for i in range(0, len(packed), 2)]
    assert len(rows) == getattr(quants, name).grid_shape[0]
    print(f"\n/// {doc}")
    print(f"pub(super) const {name}: [u16; {len(rows)}] = [")
    for i in range(0, len(rows), 12):
        print("    " + " ".join(f"0x{row:04x}," for row in rows[i : i + 12]))
    print("];")
