"""Writes wan_t2v_d256_q4_k_m.sha256.json: what every tensor of the GGUF file beside this script decodes to.

    pip install gguf==0.19.0
    python offload-core/tests/data/make_golden.py

For each tensor and each of f32, f16 and bf16: the SHA-256 of its numbers, little-endian and row-major. f16 and bf16 are
the f32 numbers rounded once, to nearest even. The file holds no NaN.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

here = Path(__file__).parent
name = "wan_t2v_d256_q4_k_m"
golden = {}
for tensor in GGUFReader(here / f"{name}.gguf").tensors:
    f32 = dequantize(tensor.data, tensor.tensor_type).astype("<f4").ravel()
    assert not np.isnan(f32).any()
    bits = f32.view("<u4").astype(np.uint64)
    bf16 = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    forms = {"f32": f32, "f16": f32.astype("<f2"), "bf16": bf16}
    golden[tensor.name] = {
        "shape": [int(dim) for dim in reversed(tensor.shape)],
        **{form: hashlib.sha256(numbers.tobytes()).hexdigest() for form, numbers in forms.items()},
    }
(here / f"{name}.sha256.json").write_text(json.dumps(golden, indent=1) + "\n")
