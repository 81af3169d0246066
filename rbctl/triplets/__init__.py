"""Triplets: a target picture, the image prompts of the individuals in it, a text prompt; with masks, boxes, keypoints.

Moving the parts of a triplet together is in ``geometry``, finding what is broken in ``check``, pictures of it all in
``contact_sheet``.
"""

from rbctl.triplets.keypoints import KEYPOINTS, SKELETON
from rbctl.triplets.layouts import load
from rbctl.triplets.triplet import Triplet, TripletObject, data_hash

__all__ = ["KEYPOINTS", "SKELETON", "Triplet", "TripletObject", "data_hash", "load"]
