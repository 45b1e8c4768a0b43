"""Writes the vectors in scaled/: every 8-bit code of three encodings, times factors, as numpy and ml_dtypes have it.

    pip install numpy==2.4.6 ml_dtypes==0.6.0
    python offload-core/tests/data/make_scaled.py

scale.f32 holds the factors. <ENCODING>.{f32,f16,bf16} hold a row of 256 numbers, for the codes 0 to 255, for each
factor: the f32 product, and that rounded once more. Little-endian, row-major.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

folder = Path(__file__).parent / "scaled"
folder.mkdir(exist_ok=True)
factors = [1.0, 0.1, -1.7e-3, 4.8e-4, 0.0123456789, 3.4028235e38, 1e-38, 1.4e-45, 0.0, -0.0, 2.0**-17, 1 / 3, 147.25]
factors += [float("inf"), float("nan"), 6.1e-5]
factors = np.array(factors, "<f4")
factors.tofile(folder / "scale.f32")
codes = np.arange(256, dtype=np.uint8)
for name, dtype in [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2), ("I8", np.int8)]:
    with np.errstate(all="ignore"):
        f32 = codes.view(dtype).astype("<f4")[None, :] * factors[:, None]
        assert f32.dtype == np.float32
        f32.tofile(folder / f"{name}.f32")
        f32.astype("<f2").tofile(folder / f"{name}.f16")
        f32.astype(ml_dtypes.bfloat16).tofile(folder / f"{name}.bf16")
