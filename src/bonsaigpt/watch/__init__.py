"""Runs in the browser while they train: one page that hears of every new line (`bonsai watch`)."""

from bonsaigpt.watch.app import make_app
from bonsaigpt.watch.following import Follower

__all__ = ["Follower", "make_app"]
