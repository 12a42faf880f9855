"""Which precision a device computes quickly."""

from __future__ import annotations

import torch


def quick_precision(device: str | None = None) -> str:
    """ "bf16" on a GPU and on a CPU with bfloat16 instructions, else "no" (fp32).

    `device` is the type that computes, "cpu" or another; None: the accelerator where there is one, else the CPU. A CPU
    without them emulates bfloat16 products, several times slower than float32. An older torch does not tell what a CPU
    can; then it is fp32, too.
    """
    if torch.accelerator.is_available() if device is None else device != "cpu":
        return "bf16"
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if any(able is True and name.endswith("bf16") for name, able in found.items()) else "no"
