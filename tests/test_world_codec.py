"""The codec: frames to bounded latents and back, one frame at a time, with the loss where it is asked for."""

import pytest
import torch

from vap_gym.world.codec import FrameCodec, charbonnier, codec_loss, to_frames, to_pictures, upsample_weight


@pytest.fixture(scope="module")
def codec() -> FrameCodec:
    torch.manual_seed(0)
    return FrameCodec(latent_channels=4, encoder_widths=(8, 16), decoder_widths=(16, 8)).eval()


def frames(*batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (*batch, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_frames_to_pictures_and_back_is_exact() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_frames(to_pictures(every)), every)
    pictures = to_pictures(frames(2, 3))
    assert pictures.shape == (6, 3, 32, 48)
    assert pictures.amin() >= -1
    assert pictures.amax() <= 1


def test_pictures_out_of_range_are_clamped_not_wrapped() -> None:
    assert to_frames(torch.tensor([-3.0, -1.0, 1.0, 9.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)).unique().tolist() == [
        0,
        255,
    ]


@torch.no_grad()
def test_latents_are_bounded_and_a_quarter_of_the_size(codec: FrameCodec) -> None:
    latents = codec.encode(30 * to_pictures(frames(2)))
    assert latents.shape == (2, 4, 8, 12)
    assert latents.abs().amax() <= 1
    assert codec.decode(latents).shape == (2, 3, 32, 48)
    assert torch.equal(codec(to_pictures(frames(2))), codec.decode(codec.encode(to_pictures(frames(2)))))


@torch.no_grad()
def test_a_frame_is_coded_without_regard_to_its_neighbours(codec: FrameCodec) -> None:
    pictures = to_pictures(frames(3))
    other = pictures.clone()
    other[1] = -other[1]
    assert torch.equal(codec(pictures)[[0, 2]], codec(other)[[0, 2]])


def test_the_loss_is_zero_for_the_picture_itself_and_counts_weighted_pixels_more() -> None:
    picture, weight = to_pictures(frames(1)), torch.ones(1, 1, 32, 48)
    weight[..., :16, :] = 9.0
    assert codec_loss(picture, picture, weight) == 0
    above, below = picture.clone(), picture.clone()
    above[..., 4:8, 4:8] += 0.3
    below[..., 24:28, 4:8] += 0.3
    assert codec_loss(above, picture, weight) > 5 * codec_loss(below, picture, weight)
    scaled = codec_loss(above, picture, 7 * weight)
    torch.testing.assert_close(scaled, codec_loss(above, picture, weight))  # only the shares count


def test_charbonnier_is_a_smooth_absolute_value() -> None:
    x = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    y = charbonnier(x)
    torch.testing.assert_close(y.detach(), torch.tensor([2.0, 0.0, 2.0]), atol=0.02, rtol=0)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad[1] == 0
    assert upsample_weight(torch.ones(1, 1, 8, 12), (32, 48)).shape == (1, 1, 32, 48)
