"""Masks as NIfTI, for scans."""

from maskloom.segcore.masks.nifti.writer import NiftiMasks

__all__ = ["NiftiMasks"]
