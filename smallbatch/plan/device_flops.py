"""Dense bfloat16 peak FLOP/s of accelerators, for the model FLOPs utilization (MFU) of programs in any dtype.

No peak is listed for CPUs, GPUs without bfloat16 tensor cores (V100, T4) and slices of a GPU (MIG).
"""

import re

# FLOP/s of one JAX device (half a chip on TPU v2, v3 and TPU7x) with float32 sums, from the vendors' data sheets.
# The doubled figures in NVIDIA's data sheets are for sparse matrices.
PEAK_FLOPS = {
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A100 PCIe": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100": 989e12,  # SXM
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,  # SXM
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
}
BY_WORDS = {tuple(kind.lower().split()): flops for kind, flops in PEAK_FLOPS.items()}
SAME_PEAK = re.compile(r"\d+gb?|hbm\d\w*|sxm\d?")  # memory and socket in a driver's name


def peak_flops(kind: str) -> float | None:
    """Return the peak FLOP/s of a device kind, as JAX names it, or None if it is not listed.

    All words must match except memory and socket: an RTX 4090 Laptop GPU is not an RTX 4090.
    """
    words = re.split(r"[ -]", kind.lower())
    return BY_WORDS.get(tuple(word for word in words if not SAME_PEAK.fullmatch(word)))


def mfu(flops_per_sec: float, kind: str, devices: int) -> float | None:
    """Return the model FLOPs utilization (Chowdhery et al. 2022, arXiv 2204.02311), or None on unknown devices."""
    peak = peak_flops(kind)
    return None if peak is None else flops_per_sec / (peak * devices)
