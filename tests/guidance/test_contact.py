import pytest
import torch

from realcustom.guidance.contact import StrongestOutside
from realcustom.guidance.mask import BinaryMask, MaskSettings, guidance_mask


def test_outside_all_masks_the_strongest_word_is_allowed():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 2, 5, 6, generator=generator)
    strict = guidance_mask(maps, MaskSettings(scope=0.2, rule=BinaryMask(), spread=0))
    rule = StrongestOutside(BinaryMask(), level=0.5)
    masks = guidance_mask(maps, MaskSettings(scope=0.2, rule=rule, spread=0))
    covered = strict.sum(dim=1) > 0
    assert not covered.all()
    assert torch.equal(masks[strict > 0], strict[strict > 0])
    assert ((masks > 0).sum(dim=1) == 1).all(), "every position has one subject, and none has two"
    outside = ~covered[:, None].expand_as(masks) & (masks > 0)
    assert (masks[outside] == 0.5).all()


def test_regions_hold_outside_as_well():
    maps = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    regions = torch.ones(1, 2, 4, 4)
    regions[:, 0, :, :2] = 0
    regions[:, 1, :, 1:] = 0
    masks = guidance_mask(maps, MaskSettings(rule=StrongestOutside(), spread=0), regions=regions)
    assert (masks[regions == 0] == 0).all()
    with pytest.raises(ValueError, match="level outside"):
        StrongestOutside(level=0)
