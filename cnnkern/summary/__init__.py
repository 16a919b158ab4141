"""The lectures' tables of a model's layers: memory, parameters, multiply-adds and receptive fields."""

from cnnkern.summary.record import Summary, summary

__all__ = ["Summary", "summary"]
