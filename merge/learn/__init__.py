"""What a model does on data: calibration sets, the walk through a model block by block, the statistics it
gives.

``samples`` and ``statistics`` import without torch, so that a plan can be made and a result looked up by
digest.
"""
