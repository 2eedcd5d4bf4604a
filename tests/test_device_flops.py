"""Peak FLOP/s by the device names that drivers report, and model FLOPs utilization (MFU)."""

import pytest

from smallbatch.plan import device_flops as peaks


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GH200 144G HBM3e", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165),
        ("TPU v2", 22.5),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_peaks_equal_the_data_sheets(kind, tflops):
    assert peaks.peak_flops(kind) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "Tesla T4",  # no bfloat16
        "Tesla V100-SXM2-16GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA A10-24Q",  # a virtual GPU
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA L40G",
        "NVIDIA H20",
        "TPU v4 lite",
        "AMD Instinct MI300X",
    ],
)
def test_a_name_that_only_resembles_a_known_device_has_no_peak(kind):
    assert peaks.peak_flops(kind) is None


def test_every_listed_device_has_its_own_peak():
    assert {kind: peaks.peak_flops(kind) for kind in peaks.PEAK_FLOPS} == peaks.PEAK_FLOPS


def test_mfu_counts_all_devices_and_is_unknown_without_a_peak():
    assert peaks.mfu(0.4 * 8 * 197e12, "TPU v5 lite", 8) == 0.4
    assert peaks.mfu(1e12, "cpu", 8) is None
