"""Numbers that the papers print for DreamBench, to stand beside ours: measured elsewhere, by others, on 30 subjects."""

from __future__ import annotations

SOURCE = (
    "as printed in the papers of the methods (RealCustom++: arXiv 2408.09744; UNO, USO, OmniGen, FLUX Kontext and "
    "others as their papers and later comparisons report them); not measured by this program"
)

# method -> DINO, CLIP-I, CLIP-T
DREAMBENCH: dict[str, tuple[float, float, float | None]] = {
    "real images": (0.774, 0.885, None),
    "Textual Inversion": (0.569, 0.780, 0.255),
    "DreamBooth": (0.668, 0.803, 0.305),
    "BLIP-Diffusion": (0.670, 0.805, 0.302),
    "IP-Adapter (SDXL)": (0.613, 0.810, 0.292),
    "SSR-Encoder": (0.612, 0.821, 0.308),
    "MS-Diffusion": (0.671, 0.792, 0.321),
    "RealCustom++ (SDXL)": (0.702, 0.794, 0.318),
    "OmniGen": (0.693, 0.801, 0.315),
    "UNO (FLUX)": (0.760, 0.835, 0.304),
    "FLUX Kontext": (0.762, 0.833, 0.321),
    "USO": (0.777, 0.838, 0.317),
}


def dreambench_lines() -> list[list[str]]:
    """Header and one line a method."""
    header = ["measured elsewhere", "DINO-I", "CLIP-I", "CLIP-T"]
    lines = [
        [name, *["-" if value is None else f"{value:.3f}" for value in numbers]] for name, numbers in DREAMBENCH.items()
    ]
    return [header, *lines]
