"""Attention kernels. They know torch and nothing of boxes, SDXL or timesteps beyond what they are handed."""

from rbctl.kernels.dispatch import BACKENDS, Backend, choose, parallel_cross_attention
from rbctl.kernels.image_mask import BoxCells, ImageMask

__all__ = ["BACKENDS", "Backend", "BoxCells", "ImageMask", "choose", "parallel_cross_attention"]
